# How an application processor (AP) reaches Rust. It starts in real mode in a copy of the trampoline (Intel SDM 3A, 9.4.4),
# goes to protected mode at ap_entry (boot.S), which is not copied, and from there to long mode and ap_start.

.set KERNEL_BASE, 0xffffffff80000000

.section .rodata.trampoline, "a"
    .code16
.global ap_trampoline
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl 2f - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $(ap_entry - KERNEL_BASE)
    .balign 4
2:  .short 31
    .long boot_gdt - KERNEL_BASE
.global ap_trampoline_end
ap_trampoline_end:

.section .text.ap, "ax"
    .code64
# No stack yet. Only the processor that the first core waits for goes on, and only once: one that comes too late for its
# own turn would else take another one's stack.
.global ap_start
ap_start:
    xorl %eax, %eax
    cpuid
    cmpl $0xb, %eax
    jb 2f
    movl $0xb, %eax
    xorl %ecx, %ecx
    cpuid
    movl %edx, %r8d
    testl %ebx, %ebx
    jnz 3f
2:  movl $1, %eax
    cpuid
    shrl $24, %ebx
    movl %ebx, %r8d
3:  cmpl {CLAIM} + {APIC_ID}(%rip), %r8d
    jne 4f
    movl ${WANTED}, %eax
    movl ${CLAIMED}, %ecx
    lock cmpxchgl %ecx, {CLAIM} + {STATE}(%rip)
    jne 4f
    movq {CLAIM} + {ROOT}(%rip), %rax
    movq %rax, %cr3
    movq {CLAIM} + {STACK}(%rip), %rsp
    movq {CLAIM} + {BLOCK}(%rip), %rdi
    xorl %ebp, %ebp
    callq {ap_rust}
4:  cli
    hlt
    jmp 4b
