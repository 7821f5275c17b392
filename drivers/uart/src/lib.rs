//! The 16550 UART.
#![no_std]
