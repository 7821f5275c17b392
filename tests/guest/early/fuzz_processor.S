# Random operations on the processor itself, as fuzz.S explains them, and the end of the image.

# MSRs: RCX the number, RDX:RAX the value. Where a monitor writes memory it is given own memory; the local APIC's base stays
# where it is and sends no commands.
.Lmsrs:
    leaq .Llikely_msrs(%rip), %r10
    call .Lrandom
    movl %eax, %ecx
    shrq $32, %rax
    btl $31, %ecx
    jc 2f
    movl %ecx, %r9d
    andl $0x3f, %ecx
    shrl $8, %r9d
    andl $15, %r9d
    addl (%r10, %r9, 4), %ecx
2:  movl %ecx, %r9d
    shrl $8, %r9d
    cmpl $0x400000, %r9d                        # Hyper-V's (0x4000_0000)
    je .Lmsrs
    cmpl $0x4b564d, %r9d                        # KVM's (0x4b56_4d00)
    je 3f
    cmpl $0x11, %ecx
    je 3f
    cmpl $0x12, %ecx
    je 3f
    cmpl $0x830, %ecx
    je .Lmsrs
    cmpl $0x1b, %ecx
    je 4f
    cmpl $EFER, %ecx
    je 4f
    movq %rbx, %rax
    movq %rbx, %rdx
    shrq $32, %rdx
    cmpl $8, %r9d                               # the local APIC: fixed interrupts alone
    jne 5f
    andl $~0x700, %eax
    jmp 5f
3:  leaq .Lpayload + SCRATCH(%rip), %rax
    andl $3, %ebx
    orq %rbx, %rax
    xorl %edx, %edx
    jmp 5f
4:  rdmsr                                       # one bit of it changed
    movl %ebx, %r9d
    andl $15, %r9d
    cmpl $EFER, %ecx
    je 6f
    andl $3, %r9d
    orl $8, %r9d
6:  btcl %r9d, %eax
5:  choose .Lmsr_list

.balign 4
.Llikely_msrs:
    .long 0, 0x10, 0x1b, 0xc0, 0x174, 0x1d9, 0x200, 0x277, 0x400, 0x6e0
    .long 0x800, 0x4b564d00, EFER, 0xc0000100, 0xc0010000, 0xc0010110

list .Lmsr_list
    entry rdmsr
    entry wrmsr
    entry wrmsr; rdmsr
.balign 32
.Lmsr_list_end:

# What asks the monitor: RAX the leaf or the number of the call, own memory or no memory in RBX.
.Lcalls:
    leaq .Lturn(%rip), %r15
    call .Lrandom
    movl %eax, %ecx
    andl $7, %ecx
    shrq $8, %rax
    btq $50, %rax
    jc 1f
    leaq .Lcall_bases(%rip), %r10
    movl %eax, %r9d
    andl $3, %r9d
    shrl $2, %eax
    andl $0x1f, %eax
    addl (%r10, %r9, 4), %eax
1:  movq %r8, %rdx
    movq %rsi, %rbx
    btl $3, %edx
    jc 2f
    movl $NOWHERE, %ebx
2:  movq %r8, %rsi
    choose .Lcall_list

.balign 4
.Lcall_bases:
    .long 0, 0, 0x40000000, 0x80000000

list .Lcall_list
    entry cpuid
    entry cpuid
    entry vmmcall
    entry vmcall
.balign 32
.Lcall_list_end:

# Control and debug registers: RAX, RBX, RDX are CR0, CR4 and CR3 with bits changed, R8 anything. Paging, protection and
# address extension stay on, and of CR4 only bits change that every processor has (0 to 10): QEMU's emulation does
# not refuse the other changes, as processors do, but does them or hangs.
.Lcontrol:
    movl %r8d, %ecx
    andl $63, %ecx
    movq .Lgood_cr0(%rip), %rax
    btcq %rcx, %rax
    movl $0x80000001, %r9d
    orq %r9, %rax
    movl %r8d, %ebx
    andl $0x7ff, %ebx
    xorq .Lgood_cr4(%rip), %rbx
    orq $0x20, %rbx
    movq .Lgood_cr3(%rip), %rdx
    movl %r8d, %r9d
    andl $0x18, %r9d                            # PWT, PCD
    orq %r9, %rdx
    choose .Lcontrol_list

list .Lcontrol_list
    entry movq %cr0, %r9
    entry movq %cr2, %r9
    entry movq %cr3, %r9
    entry movq %cr4, %r9
    entry movq %cr8, %r9
    entry movq %rax, %cr0
    entry movq %r8, %cr2
    entry movq %rdx, %cr3
    entry movq %rbx, %cr4
    entry movq %r8, %cr8
    entry movq %rcx, %cr8
    entry clts
    entry lmsw %ax
    entry smsw %r9
    entry movq %dr0, %r9
    entry movq %dr4, %r9
    entry movq %dr6, %r9
    entry movq %dr7, %r9
    entry movq %r8, %dr0
    entry movq %r8, %dr3
    entry movq %r8, %dr6
    entry movq %rcx, %dr7
    entry movq %r8, %dr7
    entry .byte 0x0f, 0x20, 0xc8                # CR1
.balign 32
.Lcontrol_list_end:

# What else a kernel may try; no address that is used is anybody's but the program's own.
.Lprivileged:
    movq %r8, %rdx
    movl %r8d, %ecx
    andl $3, %ecx
    movl %r8d, %eax
    choose .Lprivileged_list

list .Lprivileged_list
    entry wbinvd
    entry invd
    entry invlpg (%rsi)
    entry invlpg (%rbx)
    entry invpcid (%rsi), %rcx
    entry monitor
    entry rdpmc
    entry rdtsc
    entry rdtscp
    entry xsetbv
    entry xgetbv
    entry xorl %ecx, %ecx; xgetbv; xsetbv
    entry pause
    entry vmload %rax
    entry vmsave %rax
    entry stgi
    entry clgi
    entry invlpga %rax, %ecx
    entry vmlaunch
    entry vmxoff
    entry vmread %rax, %rcx
    entry rsm
    entry getsec
    entry ltr %ax
    entry lldt %ax
    entry str %ax
    entry sldt %ax
    entry lsl %ax, %ecx
    entry verw %ax
    entry swapgs; swapgs
    entry ud2
    entry int3
    entry int $0x80
    entry int $8
    entry .byte 0xf1                            # INT1
    entry divl (%rsi)
    entry movq (%rbx), %rax
    entry pushfq; orl $0x100, (%rsp); popfq
    entry sti; cli
    entry fninit; fwait
.balign 32
.Lprivileged_list_end:

.global guest_kit_payload_end
guest_kit_payload_end:
