# The protected-mode part of the image: a kernel that tries the monitor from ring 0.
#
# Entered in long mode at offset 0x200, with boot parameters in RSI. It runs wherever it is loaded; its own data follow
# the code, beyond the image. Everything is at its own physical address, the first 4 GiB and one window of 2 MiB.
#
# R15 says where to go on after any exception: the one handler of all vectors drops what was interrupted. Labels begin
# with .L, so that they are nothing to the rest of the library that this is assembled into.

.set SCRATCH, 0x10000                           # 64 KiB that devices may write
.set TABLES, 0x20000                            # page tables: level 4, 3, four of level 2, the window's levels 3 and 2
.set IDT, 0x28000
.set STACK, 0x2a000                             # the end of the stack
.set WINDOW, 1 << 39                            # the window's virtual address

.set NOWHERE, 0xd0000000                        # neither memory nor a device
.set IO_APIC, 0xfec00000
.set LOCAL_APIC, 0xfee00000
.set EFER, 0xc0000080

.section .rodata.guest_kit_payload, "a"
.balign 16
.global guest_kit_payload_begin
guest_kit_payload_begin:
.Lpayload:
.code32
    cli                                         # the 32-bit entry, which no loader here uses
1:  hlt
    jmp 1b
.code64
    .org .Lpayload + 0x200
    jmp .Lstart
    .org .Lpayload + 0x210
# What the generator fills in (early.rs).
    .ascii "EARLYKIT"
.Lscenario:
    .long 0
.Literations:
    .long 0
.Lseed:
    .quad 0

.Lstart:
    cli
    cld
    leaq .Lpayload(%rip), %rbp
    leaq STACK(%rbp), %rsp
    movl 0x202(%rsi), %ebx                      # the header's magic

    leaq .Lgdt(%rip), %rax
    movq %rax, .Lgdt_pointer + 2(%rip)
    lgdt .Lgdt_pointer(%rip)
    pushq $0x10
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
1:  movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss

    # One interrupt gate for all vectors.
    leaq .Lhandler(%rip), %rax
    leaq IDT(%rbp), %rdi
    movl $256, %ecx
1:  movq %rax, %rdx
    movw %dx, (%rdi)
    movw $0x10, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shrq $16, %rdx
    movw %dx, 6(%rdi)
    shrq $16, %rdx
    movq %rdx, 8(%rdi)
    addq $16, %rdi
    loop 1b
    leaq IDT(%rbp), %rax
    movq %rax, .Lidt_pointer + 2(%rip)
    lidt .Lidt_pointer(%rip)

    leaq TABLES(%rbp), %rdi
    xorl %eax, %eax
    movl $8 * 512, %ecx
    rep stosq
    leaq TABLES(%rbp), %rdi
    leaq 0x1003(%rdi), %rax
    movq %rax, (%rdi)
    leaq 0x2003(%rdi), %rax
    movl $4, %ecx
    leaq 0x1000(%rdi), %rdx
1:  movq %rax, (%rdx)
    addq $0x1000, %rax
    addq $8, %rdx
    loop 1b
    leaq 0x6003(%rdi), %rax
    movq %rax, 8(%rdi)
    leaq 0x7003(%rdi), %rax
    movq %rax, 0x6000(%rdi)
    leaq 0x2000(%rdi), %rdx
    movl $0x83, %eax                            # present, writable, 2 MiB
    movl $2048, %ecx
1:  movq %rax, (%rdx)
    addq $0x200000, %rax
    addq $8, %rdx
    loop 1b
    movq %rdi, %cr3
    movq %rdi, .Lgood_cr3(%rip)

    movq %cr0, %rax
    andq $~0xc, %rax                            # EM and TS off, MP on: SSE is usable
    orq $2, %rax
    movq %rax, %cr0
    movq %rax, .Lgood_cr0(%rip)
    movq %cr4, %rax
    orq $0x600, %rax                            # OSFXSR, OSXMMEXCPT
    movq %rax, %cr4
    movq %rax, .Lgood_cr4(%rip)
    movl $EFER, %ecx
    rdmsr
    movl %eax, .Lgood_efer(%rip)
    movl %edx, .Lgood_efer + 4(%rip)

    leaq .Ltext_no_header(%rip), %rdi
    cmpl $0x53726448, %ebx                      # "HdrS"
    jne .Lprint_and_end

    leaq .Ltext_early(%rip), %rdi
    call .Lprint
    movl .Lscenario(%rip), %eax
    cmpl $(.Lscenarios_end - .Lscenarios) / 4, %eax
    jae .Lend
    leaq .Lscenarios(%rip), %rdi
    movslq (%rdi, %rax, 4), %rax
    addq %rdi, %rax
    jmpq *%rax

# In the order of early.rs.
.balign 4
.Lscenarios:
    .long .Lfuzz - .Lscenarios
    .long .Ltriple_fault - .Lscenarios
    .long .Lhalt_forever - .Lscenarios
    .long .Lvmrun_nested - .Lscenarios
    .long .Lvector_store - .Lscenarios
    .long .Lexit_storm - .Lscenarios
    .long .Ljump_nowhere - .Lscenarios
    .long .Ltables_nowhere - .Lscenarios
    .long .Lstack_nowhere - .Lscenarios
    .long .Lvectors_nowhere - .Lscenarios
.Lscenarios_end:

.Lhandler:
    incq .Lfaults(%rip)
    leaq .Lpayload + STACK(%rip), %rsp
    movq %rsp, %rax
    pushq $0x18
    pushq %rax
    pushq $2
    pushq $0x10
    pushq %r15
    iretq

.Ltriple_fault:
    leaq .Ltext_triple_fault(%rip), %rdi
    call .Lprint
    lidt .Lnothing(%rip)
    int3

.Lhalt_forever:
    leaq .Ltext_halt(%rip), %rdi
    call .Lprint
    cli
    hlt
    jmp .Lsurvived

.Lvmrun_nested:
    leaq .Ltext_vmrun(%rip), %rdi
    call .Lprint
    leaq 1f(%rip), %r15
    movl $EFER, %ecx
    rdmsr
    orl $0x1000, %eax                           # SVME
    wrmsr
    movl $0xc0010117, %ecx                      # VM_HSAVE_PA
    leaq .Lpayload + SCRATCH(%rip), %rax
    xorl %edx, %edx
    wrmsr
1:  leaq 2f(%rip), %r15
    leaq .Lpayload + SCRATCH + 0x1000(%rip), %rax
    vmrun %rax
2:  leaq 3f(%rip), %r15
    movl $NOWHERE, %eax
    vmrun %rax
3:  leaq .Lsurvived(%rip), %r15
    movl $0x123, %eax
    vmrun %rax
    jmp .Lsurvived

.Lvector_store:
    leaq .Ltext_vector(%rip), %rdi
    call .Lprint
    leaq .Lsurvived(%rip), %r15
    movl $IO_APIC, %edi
    xorps %xmm0, %xmm0
    movaps %xmm0, (%rdi)
    jmp .Lsurvived

.Lexit_storm:
    leaq .Ltext_storm(%rip), %rdi
    call .Lprint
1:  xorl %eax, %eax
    cpuid
    outb %al, $0x80
    inb $0x80, %al
    movl IO_APIC, %eax
    movl $NOWHERE, %edi
    movl %eax, (%rdi)
    jmp 1b

.Ljump_nowhere:
    leaq .Ltext_jump(%rip), %rdi
    call .Lprint
    leaq .Lsurvived(%rip), %r15
    movl $NOWHERE, %eax
    jmpq *%rax

.Ltables_nowhere:
    leaq .Ltext_tables(%rip), %rdi
    call .Lprint
    leaq .Lsurvived(%rip), %r15
    movl $NOWHERE, %eax
    movq %rax, %cr3
    jmp .Lsurvived

.Lstack_nowhere:
    leaq .Ltext_stack(%rip), %rdi
    call .Lprint
    leaq .Lsurvived(%rip), %r15
    movl $NOWHERE + 0x800, %esp
    int3
    jmp .Lsurvived

.Lvectors_nowhere:
    leaq .Ltext_vectors(%rip), %rdi
    call .Lprint
    leaq .Lsurvived(%rip), %r15
    movl $NOWHERE, %eax
    movq %rax, .Lidt_pointer + 2(%rip)
    lidt .Lidt_pointer(%rip)
    int3

.Lsurvived:
    leaq .Lpayload + STACK(%rip), %rsp
    leaq .Ltext_survived(%rip), %rdi
.Lprint_and_end:
    call .Lprint
.Lend:
    # Soft off as the monitor's tables have it; then as QEMU's machines of either kind have it.
    movl $0x604, %edx
    movl $(5 << 10) | (1 << 13), %eax
    outw %ax, %dx
    movl $1 << 13, %eax
    outw %ax, %dx
    movl $0xb004, %edx
    outw %ax, %dx
1:  hlt
    jmp 1b

# Prints the text at RDI, which ends in zero; changes RAX, RCX, RDX, RDI.
.Lprint:
    movb (%rdi), %al
    testb %al, %al
    jz 1f
    call .Lput
    incq %rdi
    jmp .Lprint
1:  ret

# Prints AL; changes RAX, RCX, RDX.
.Lput:
    movb %al, %ah
    movl $100000, %ecx                          # a device that never gets ready must not stop the test
    movl $0x3fd, %edx
1:  inb %dx, %al
    testb $0x20, %al
    loopz 1b
    movb %ah, %al
    movl $0x3f8, %edx
    outb %al, %dx
    ret

# Prints RBX as hexadecimal digits; changes RAX, RCX, RDX, RSI.
.Lprint_number:
    movl $16, %esi
1:  rolq $4, %rbx
    movl %ebx, %eax
    andl $15, %eax
    addl $'0', %eax
    cmpl $'9', %eax
    jbe 2f
    addl $'a' - '0' - 10, %eax
2:  call .Lput
    decl %esi
    jnz 1b
    ret

# The next number of SplitMix64 in RAX; changes RDX.
.Lrandom:
    movabsq $0x9e3779b97f4a7c15, %rax
    addq %rax, .Lseed(%rip)
    movq .Lseed(%rip), %rax
    movq %rax, %rdx
    shrq $30, %rdx
    xorq %rdx, %rax
    movabsq $0xbf58476d1ce4e5b9, %rdx
    imulq %rdx, %rax
    movq %rax, %rdx
    shrq $27, %rdx
    xorq %rdx, %rax
    movabsq $0x94d049bb133111eb, %rdx
    imulq %rdx, %rax
    movq %rax, %rdx
    shrq $31, %rdx
    xorq %rdx, %rax
    ret

.Lgdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff                    # 0x10: code
    .quad 0x00cf93000000ffff                    # 0x18: data
.Lgdt_pointer:
    .short .Lgdt_pointer - .Lgdt - 1
    .quad 0
.Lidt_pointer:
    .short 256 * 16 - 1
    .quad 0
.Lnothing:
    .short 0
    .quad 0

.balign 8
.Lgood_cr0:   .quad 0
.Lgood_cr3:   .quad 0
.Lgood_cr4:   .quad 0
.Lgood_efer:  .quad 0
.Lfaults:     .quad 0

.Ltext_early:         .asciz "early "
.Ltext_no_header:     .asciz "early: no boot parameters\n"
.Ltext_fuzz:          .asciz "fuzz "
.Ltext_faults:        .asciz "\nearly-fuzz faults "
.Ltext_done:          .asciz "\nearly-fuzz done\n"
.Ltext_triple_fault:  .asciz "triple-fault\n"
.Ltext_halt:          .asciz "halt-forever\n"
.Ltext_vmrun:         .asciz "vmrun\n"
.Ltext_vector:        .asciz "vector-store\n"
.Ltext_storm:         .asciz "exit-storm\n"
.Ltext_jump:          .asciz "jump-nowhere\n"
.Ltext_tables:        .asciz "tables-nowhere\n"
.Ltext_stack:         .asciz "stack-nowhere\n"
.Ltext_vectors:       .asciz "vectors-nowhere\n"
.Ltext_survived:      .asciz "early survived\n"
