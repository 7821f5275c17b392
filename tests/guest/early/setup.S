# The boot sector and real-mode part of the image: Linux's boot protocol (Documentation/arch/x86/boot.rst), version 2.15.
#
# A loader of the 64-bit protocol reads the header and never runs the code. One of the 16-bit protocol (QEMU's -kernel)
# enters at offset 0x200; the code goes from there to what the 64-bit protocol promises: long mode, 4 GiB mapped at
# their own addresses, boot parameters in RSI. These are this sector, so they hold a header and nothing else.
#
# It runs wherever a loader puts it, so addresses are differences to `setup`, and made linear at run time.

.set PAYLOAD, 0x100000                          # where the protected-mode part is loaded
.set PAYLOAD_BYTES, 0x30000                     # what it uses there, as payload.S lays it out
.set SETUP_TABLES, 0x40000                           # six pages that are free while a loader's real-mode part runs

.section .rodata.guest_kit_setup, "a"
.balign 16
.global guest_kit_setup_begin
guest_kit_setup_begin:
.Lsetup:
    .fill 0x1f1, 1, 0
.Lheader:
    .byte 4                                     # setup_sects, after the boot sector
    .short 0                                    # root_flags
    .long 0                                     # syssize: patched
    .short 0, 0, 0                              # ram_size, vid_mode, root_dev
    .short 0xaa55                               # boot_flag
    .byte 0xeb, .Lentry - .Ljump_end            # jump
.Ljump_end:
    .ascii "HdrS"
    .short 0x020f                               # version
    .long 0                                     # realmode_swtch
    .short 0                                    # start_sys_seg
    .short 0                                    # kernel_version
    .byte 0                                     # type_of_loader
    .byte 1                                     # loadflags: LOADED_HIGH
    .short 0                                    # setup_move_size
    .long PAYLOAD                               # code32_start
    .long 0, 0                                  # ramdisk_image, ramdisk_size
    .long 0                                     # bootsect_kludge
    .short 0                                    # heap_end_ptr
    .byte 0, 0                                  # ext_loader_ver, ext_loader_type
    .long 0                                     # cmd_line_ptr
    .long 0x7fffffff                            # initrd_addr_max
    .long PAYLOAD                               # kernel_alignment
    .byte 1                                     # relocatable_kernel
    .byte 20                                    # min_alignment
    .short 1                                    # xloadflags: XLF_KERNEL_64
    .long 2047                                  # cmdline_size
    .long 0                                     # hardware_subarch
    .quad 0                                     # hardware_subarch_data
    .long 0, 0                                  # payload_offset, payload_length
    .quad 0                                     # setup_data
    .quad PAYLOAD                               # pref_address
    .long PAYLOAD_BYTES                         # init_size
    .long 0                                     # handover_offset
    .long 0                                     # kernel_info_offset

.code16
.Lentry:
    cli
    cld
    movw %cs, %ax
    subw $0x20, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x8ff0, %sp
    movzwl %ax, %ebx
    shll $4, %ebx                               # the linear address of `setup`
    inb $0x92, %al                              # address line 20 on, and no reset
    orb $2, %al
    andb $0xfe, %al
    outb %al, $0x92
    leal .Lsetup_gdt - .Lsetup(%ebx), %eax
    movl %eax, .Lsetup_gdt_pointer + 2 - .Lsetup
    leal .Lprotected - .Lsetup(%ebx), %eax
    movl %eax, .Lto_protected - .Lsetup
    leal .Llong - .Lsetup(%ebx), %eax
    movl %eax, .Lto_long - .Lsetup
    lgdtl .Lsetup_gdt_pointer - .Lsetup
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl *.Lto_protected - .Lsetup

.code32
.Lprotected:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    leal 0x8ff0(%ebx), %esp
    # One page of level 4, one of level 3, four of level 2 with pages of 2 MiB: present, writable.
    movl $SETUP_TABLES, %edi
    xorl %eax, %eax
    movl $6 * 1024, %ecx
    rep stosl
    movl $SETUP_TABLES + 0x1003, SETUP_TABLES
    movl $SETUP_TABLES + 0x2003, SETUP_TABLES + 0x1000
    movl $SETUP_TABLES + 0x3003, SETUP_TABLES + 0x1008
    movl $SETUP_TABLES + 0x4003, SETUP_TABLES + 0x1010
    movl $SETUP_TABLES + 0x5003, SETUP_TABLES + 0x1018
    movl $SETUP_TABLES + 0x2000, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    loop 1b
    movl $SETUP_TABLES, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax                             # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx                      # EFER
    rdmsr
    orl $0x100, %eax                            # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl *.Lto_long - .Lsetup(%ebx)

.code64
.Llong:
    movl %ebx, %esi
    movl 0x214(%rsi), %edi                      # code32_start
    addq $0x200, %rdi
    jmpq *%rdi

.balign 8
.Lsetup_gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff                    # 0x10: 64-bit code
    .quad 0x00cf93000000ffff                    # 0x18: data
    .quad 0x00cf9b000000ffff                    # 0x20: 32-bit code
.Lsetup_gdt_pointer:
    .short .Lsetup_gdt_pointer - .Lsetup_gdt - 1
    .long 0
.Lto_protected:
    .long 0
    .short 0x20
.Lto_long:
    .long 0
    .short 0x10
.global guest_kit_setup_end
guest_kit_setup_end:
