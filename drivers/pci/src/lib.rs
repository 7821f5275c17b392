//! PCI configuration space: access, enumeration, BARs and MSI-X.
#![no_std]
