# Entry from a boot loader: 32-bit protected mode with flat segments and paging off, in both protocols.
#
# PVH (xen/include/public/arch-x86/hvm/start_info.h): EBX holds the physical address of hvm_start_info.
# Multiboot2 (specification 2.0, 3.3): EAX holds 0x36d76289, EBX the address of the boot information.
#
# The code is linked high and runs low here, so every address is made physical by hand.

.set KERNEL_BASE, 0xffffffff80000000

.section .note.Xen, "a", @note
    .balign 4
    .long 4                                     # bytes of the name
    .long 4                                     # bytes of the value
    .long 18                                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry - KERNEL_BASE

.section .boot.header, "a"
    .balign 8
multiboot2_header:
    .long 0xe85250d6                            # magic
    .long 0                                     # i386 protected mode
    .long multiboot2_header_end - multiboot2_header
    .long 0x100000000 - (0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    # Information request, optional: command line, modules, memory map, both ACPI root pointers.
    .balign 8
    .short 1, 1
    .long 28
    .long 1, 3, 6, 14, 15
    # Entry address.
    .balign 8
    .short 3, 0
    .long 12
    .long multiboot2_entry - KERNEL_BASE
    # Modules on page boundaries.
    .balign 8
    .short 6, 0
    .long 8
    # End.
    .balign 8
    .short 0, 0
    .long 8
multiboot2_header_end:

.section .boot.text, "ax"
    .code32

.global pvh_entry
pvh_entry:
    movl ${PVH}, %edi
    jmp start

.global multiboot2_entry
multiboot2_entry:
    movl ${MULTIBOOT2}, %edi
    cmpl $0x36d76289, %eax
    jne unfit

start:
    cli
    cld
    movl %ebx, %esi

    # A long-mode processor with no-execute pages, or none of this can work (AMD APM 3, CPUID 8000_0001).
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb unfit
    movl $0x80000001, %eax
    cpuid
    andl $0x20100000, %edx                      # LM, NX
    cmpl $0x20100000, %edx
    jne unfit

    # 4 GiB in pages of 2 MiB: present, writable, large.
    movl $(boot_directories - KERNEL_BASE), %edx
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edx)
    addl $0x200000, %eax
    addl $8, %edx
    decl %ecx
    jnz 1b
    movl $(boot_low - KERNEL_BASE), %edx
    movl $(boot_directories - KERNEL_BASE + 3), %eax
    movl %eax, (%edx)
    movl %eax, (boot_high - KERNEL_BASE + 510 * 8)
    addl $4096, %eax
    movl %eax, 8(%edx)
    addl $4096, %eax
    movl %eax, 16(%edx)
    addl $4096, %eax
    movl %eax, 24(%edx)
    # The same 4 GiB at 0 and, not executable, at the direct map; the first GiB also at the kernel's base.
    movl $(boot_root - KERNEL_BASE), %edx
    leal (boot_low - KERNEL_BASE + 3), %eax
    movl %eax, (%edx)
    movl %eax, (256 * 8)(%edx)
    movl $0x80000000, (256 * 8 + 4)(%edx)
    leal (boot_high - KERNEL_BASE + 3), %eax
    movl %eax, (511 * 8)(%edx)
    lgdtl (boot_gdt_pointer - KERNEL_BASE)
    jmp enter_long_mode

# An application processor comes here from its trampoline (smp.S), with the boot descriptor table loaded.
.global ap_entry
ap_entry:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ${AP}, %edi

# EDI: which of the three ways led here. ESI: the boot information's address.
enter_long_mode:
    movl $0x620, %eax                           # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $(boot_root - KERNEL_BASE), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                      # EFER
    rdmsr
    orl $0x900, %eax                            # LME, NXE
    wrmsr
    movl $0x80010033, %eax                      # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmpl $0x18, $(1f - KERNEL_BASE)

unfit:
    cli
    hlt
    jmp unfit

    .code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    xorl %ebp, %ebp
    movabsq $2f, %rax
    jmpq *%rax
2:  cmpl ${AP}, %edi
    je ap_start
    leaq boot_stack_top(%rip), %rsp
    callq {boot_entry}
    ud2

.section .rodata.boot, "a"
    .balign 8
.global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                    # 0x08: 32-bit code
    .quad 0x00cf93000000ffff                    # 0x10: data
    .quad 0x00af9b000000ffff                    # 0x18: 64-bit code
boot_gdt_end:
.global boot_gdt_pointer
boot_gdt_pointer:
    .short boot_gdt_end - boot_gdt - 1
    .long boot_gdt - KERNEL_BASE

.section .bss.boot, "aw", @nobits
    .balign 4096
boot_root:
    .skip 4096
boot_low:
    .skip 4096
boot_high:
    .skip 4096
boot_directories:
    .skip 4 * 4096
.global boot_stack_guard
boot_stack_guard:                               # left out of the final address space
    .skip 4096
    .skip 0x40000
boot_stack_top:
