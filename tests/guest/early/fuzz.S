# The random part of payload.S: its loop, ports and MMIO. fuzz_processor.S has the operations on the processor.
#
# Each turn prepares registers for one kind of operation and jumps to one of its list. An entry has 32 bytes, its jump
# to the next turn with it; a list's length is where it ends. Left alone is what ends the machine by design, and what would
# write memory of this program.

.macro list name:req
.balign 32
\name:
.endm

.macro entry instruction:vararg
.balign 32
    \instruction
    jmp .Lturn_over
.endm

# Jumps to a random entry of a list.
.macro choose name:req
    leaq \name(%rip), %r10
    movl $\name\()_end - \name, %r11d
    jmp .Lchosen
.endm

.Lfuzz:
    leaq .Lrepair(%rip), %r15
    leaq .Ltext_fuzz(%rip), %rdi
    call .Lprint
    movq .Lseed(%rip), %rbx
    call .Lprint_number
    leaq .Lpayload + SCRATCH(%rip), %rdi
    xorl %eax, %eax
    movl $0x10000 / 8, %ecx
    rep stosq

# After what may have changed how the processor works.
.Lrepair:
    cld
    movq .Lgood_cr0(%rip), %rax
    movq %rax, %cr0
    movq .Lgood_cr4(%rip), %rax
    movq %rax, %cr4
    movq .Lgood_cr3(%rip), %rax
    movq %rax, %cr3
    xorl %eax, %eax
    movq %rax, %cr8
    movl $0x400, %eax
    movq %rax, %dr7
    movl $EFER, %ecx
    movl .Lgood_efer(%rip), %eax
    movl .Lgood_efer + 4(%rip), %edx
    wrmsr

.Lturn:
    cld
    leaq .Lpayload + STACK(%rip), %rsp
    decl .Literations(%rip)
    js .Lfuzz_done
    testl $0xff, .Literations(%rip)
    jnz 1f
    movb $'.', %al
    call .Lput
1:  call .Lrandom
    movq %rax, %r13
    # What most operations take: values in RAX, RBX and R8, a count in RCX, own memory at RSI.
    call .Lrandom
    movq %rax, %rbx
    call .Lrandom
    movq %rax, %r8
    movl %eax, %ecx
    andl $7, %ecx
    movzwl %ax, %eax
    andl $0x7fff, %eax
    leaq .Lpayload + SCRATCH + 0x4000(%rip), %rsi
    addq %rax, %rsi
    leaq .Lrepair(%rip), %r15
    movl %r13d, %eax
    andl $7, %eax
    leaq .Lkinds(%rip), %r10
    movslq (%r10, %rax, 4), %rax
    addq %r10, %rax
    jmpq *%rax

.balign 4
.Lkinds:
    .long .Lports - .Lkinds, .Lports - .Lkinds
    .long .Lmmio - .Lkinds, .Lmmio - .Lkinds
    .long .Lmsrs - .Lkinds
    .long .Lcalls - .Lkinds
    .long .Lcontrol - .Lkinds
    .long .Lprivileged - .Lkinds

# R10: a list, R11: its bytes. Changes nothing else but R12.
.Lchosen:
    movq %rax, %r12
    pushq %rdx
    movq %r13, %rax
    shrq $8, %rax
    xorl %edx, %edx
    shrq $5, %r11
    divq %r11
    shlq $5, %rdx
    addq %rdx, %r10
    popq %rdx
    movq %r12, %rax
    jmpq *%r10

# Operations that change how the processor works return to `repair`, as exceptions in them do.
.Lturn_over:
    jmpq *%r15

.Lfuzz_done:
    leaq .Ltext_faults(%rip), %rdi
    call .Lprint
    movq .Lfaults(%rip), %rbx
    call .Lprint_number
    leaq .Ltext_done(%rip), %rdi
    jmp .Lprint_and_end

# Ports: RDX is one of those that may be used, mostly where a PC has devices; RDI and RSI own memory.
.Lports:
    leaq .Lturn(%rip), %r15
    movq %rsi, %rdi
2:  call .Lrandom
    movzwl %ax, %r9d
    btl $16, %eax
    jc 3f
    andl $0x3ff, %r9d
3:  leaq .Lexcluded_ports(%rip), %r10
    movl $(.Lexcluded_ports_end - .Lexcluded_ports) / 4, %r11d
4:  movzwl (%r10), %eax
    movzwl 2(%r10), %edx
    leal 3(%r9), %r12d
    cmpl %eax, %r12d
    jb 5f
    cmpl %edx, %r9d
    jbe 2b
5:  addq $4, %r10
    decl %r11d
    jnz 4b
    movl %r9d, %edx
    movq %rbx, %rax
    choose .Lport_list

.balign 4
.Lexcluded_ports:
    .short 0x64, 0x64                           # keyboard controller: reset
    .short 0x92, 0x92                           # system control port A: reset
    .short 0xb2, 0xb3                           # system management
    .short 0xf4, 0xf4                           # QEMU's isa-debug-exit
    .short 0x3f8, 0x3ff                         # the console
    .short 0x501, 0x501                         # isa-debug-exit's other place
    .short 0x510, 0x51b                         # QEMU's firmware configuration: writes memory
    .short 0x600, 0x607                         # power off
    .short 0xcf9, 0xcf9                         # reset
    .short 0xb000, 0xb0ff                       # power off of QEMU's older machine
.Lexcluded_ports_end:

list .Lport_list
    entry inb %dx, %al
    entry inw %dx, %ax
    entry inl %dx, %eax
    entry outb %al, %dx
    entry outw %ax, %dx
    entry outl %eax, %dx
    entry insb
    entry insw
    entry insl
    entry outsb
    entry outsw
    entry outsl
    entry rep insb
    entry rep insw
    entry rep insl
    entry rep outsb
    entry rep outsw
    entry rep outsl
    entry std; rep insl
    entry std; rep outsb
    entry addr32 rep insb
    entry addr32 rep outsw
    entry inb $0x80, %al
    entry outl %eax, $0x80
.balign 32
.Lport_list_end:

# Addresses without memory: RDI. Values have three bits of each byte clear, so that no interrupt is sent as INIT, SMI or
# NMI wherever in a register they land; so memory that is copied from, at RSI, stays zero, and R8 is for what is copied in.
.Lmmio:
    leaq .Lturn(%rip), %r15
    movabsq $0xf8f8f8f8f8f8f8f8, %rax
    andq %rax, %rbx
    call .Lrandom
    movl %eax, %edi
    movl %eax, %r9d
    shrl $30, %r9d
    andl $0xfff, %edi
    cmpl $1, %r9d
    jb 3f
    je 2f
    cmpl $3, %r9d
    je 4f
    movq %rax, %rdi                             # anywhere from 3 to 4 GiB, but for the local APIC
    shrq $34, %rdi
    orl $0xc0000000, %edi
    movl %edi, %r9d
    shrl $20, %r9d
    cmpl $LOCAL_APIC >> 20, %r9d
    jne 6f
2:  andl $0xfff, %edi                           # the local APIC, but for its commands to processors
    leal -0x2e0(%rdi), %r9d
    cmpl $0x40, %r9d
    jb .Lmmio
    orl $LOCAL_APIC, %edi
    jmp 6f
3:  orl $IO_APIC, %edi
    jmp 6f
4:  # The window, to any address from 64 GiB on, or near to where a monitor may keep its own.
    movq %rax, %r9
    shrq $12, %r9
    btq $40, %rax
    jc 5f
    andl $0x3fffffff, %r9d
    btsq $38, %r9
5:  movabsq $0x000fffffffe00000, %rdx
    andq %rdx, %r9
    btsq $36, %r9
    orq $0x83, %r9
    movq %r9, .Lpayload + TABLES + 0x7000(%rip)
    movabsq $WINDOW, %rdx
    invlpg (%rdx)
    addq %rdx, %rdi
6:  movq %rbx, %rax
    movq %rbx, %rdx
    movq %rsi, %r8
    leaq .Lpayload + SCRATCH + 0xd000(%rip), %rsi
    choose .Lmmio_list

list .Lmmio_list
    entry movb (%rdi), %dl
    entry movw (%rdi), %dx
    entry movl (%rdi), %edx
    entry movq (%rdi), %rdx
    entry movb %al, (%rdi)
    entry movw %ax, (%rdi)
    entry movl %eax, (%rdi)
    entry movq %rax, (%rdi)
    entry movb $0x70, (%rdi)
    entry movw $0x7070, (%rdi)
    entry movl $0x10070, (%rdi)
    entry movq $0x10070, (%rdi)
    entry movzbl (%rdi), %edx
    entry movzwl (%rdi), %edx
    entry movsbq (%rdi), %rdx
    entry movslq (%rdi), %rdx
    entry orl $0x10000, (%rdi)
    entry andl $~0x700, (%rdi)
    entry xorb $0x10, (%rdi)
    entry addl (%rdi), %edx
    entry cmpl %eax, (%rdi)
    entry testb $1, (%rdi)
    entry btl $3, (%rdi)
    entry xchgl %eax, (%rdi)
    entry lock xaddb %al, (%rdi)
    entry lock cmpxchgl %edx, (%rdi)
    entry cmpxchg8b (%rdi)
    entry stosl
    entry rep stosb
    entry movsl
    entry rep movsb
    entry movq %rdi, %rsi; movq %r8, %rdi; rep movsl
    entry movq %rdi, %rsi; lodsq
    entry cmpsb
    entry scasl
    entry pushq (%rdi)
    entry sgdt (%r8)
    entry movnti %eax, (%rdi)
    entry clflush (%rdi)
    entry prefetcht0 (%rdi)
.balign 32
.Lmmio_list_end:
