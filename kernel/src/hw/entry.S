# Into the kernel and out of it. What each path may rely on:
#
# - In ring 0 interrupts are off but at the idle halt and after a guest's exit; GS is the core's block, and was
#   exchanged with ring 3's at the entry from ring 3 alone. An exception in ring 0 is a defect of the kernel's and ends in
#   a panic.
# - Every vector has a stack of the task state's, so the red zone of what was interrupted stays whole, and neither an
#   NMI nor a machine check minds that RSP is ring 3's in the first and the last instructions of a system call.
# - The context of PerCpu.current takes the registers; from then on its stack frame is worth nothing, and the handler
#   starts at the end of the core's kernel stack.

.section .text.entry, "ax"

# The task priority is 0 as it was; that it is written has the local APIC look again for interrupts that wait. QEMU 7.2's
# VMRUN and #VMEXIT can lose the flag by which another thread told the processor of one, and it would halt for ever.
.macro look_at_interrupts
    xor eax, eax
    mov cr8, rax
.endm

# The general registers but RAX and RSP, from and to where RAX points.
.macro load_most
    mov rbx, [rax + {RBX}]
    mov rcx, [rax + {RCX}]
    mov rdx, [rax + {RDX}]
    mov rsi, [rax + {RSI}]
    mov rdi, [rax + {RDI}]
    mov rbp, [rax + {RBP}]
    mov r8, [rax + {R8}]
    mov r9, [rax + {R9}]
    mov r10, [rax + {R10}]
    mov r11, [rax + {R11}]
    mov r12, [rax + {R12}]
    mov r13, [rax + {R13}]
    mov r14, [rax + {R14}]
    mov r15, [rax + {R15}]
.endm

.macro store_most
    mov [rax + {RBX}], rbx
    mov [rax + {RCX}], rcx
    mov [rax + {RDX}], rdx
    mov [rax + {RSI}], rsi
    mov [rax + {RDI}], rdi
    mov [rax + {RBP}], rbp
    mov [rax + {R8}], r8
    mov [rax + {R9}], r9
    mov [rax + {R10}], r10
    mov [rax + {R11}], r11
    mov [rax + {R12}], r12
    mov [rax + {R13}], r13
    mov [rax + {R14}], r14
    mov [rax + {R15}], r15
.endm

# SYSCALL: RCX is the address to return to, R11 the flags; SFMASK has cleared IF, DF, TF, NT and AC.
.balign 64
.global syscall_entry
syscall_entry:
    swapgs
    mov gs:[{SCRATCH}], rsp
    mov rsp, gs:[{CURRENT}]
    mov [rsp + {RAX}], rax
    mov [rsp + {RBX}], rbx
    mov [rsp + {RDX}], rdx
    mov [rsp + {RSI}], rsi
    mov [rsp + {RDI}], rdi
    mov [rsp + {RBP}], rbp
    mov [rsp + {R8}], r8
    mov [rsp + {R9}], r9
    mov [rsp + {R10}], r10
    mov [rsp + {R12}], r12
    mov [rsp + {R13}], r13
    mov [rsp + {R14}], r14
    mov [rsp + {R15}], r15
    mov [rsp + {RIP}], rcx
    mov [rsp + {RFLAGS}], r11
    mov rax, gs:[{SCRATCH}]
    mov [rsp + {RSP}], rax
    mov qword ptr [rsp + {RESUME}], 0
    mov rdi, gs:[{THIS}]
    mov rsp, gs:[{KERNEL_STACK}]
    call {on_syscall}
    # What follows goes on with whatever is current then.

.global resume
resume:
    mov rsp, gs:[{CURRENT}]
    cmp qword ptr [rsp + {RESUME}], 0
    jne resume_full
    # FPU and SSE registers are dead here, but hold what the kernel or another service left, and the modes that
    # another service set: one instruction makes them as at a thread's start.
    fxrstor64 [rip + {INITIAL_FPU}]
    mov rax, [rsp + {RAX}]
    mov rbx, [rsp + {RBX}]
    mov rdx, [rsp + {RDX}]
    mov rsi, [rsp + {RSI}]
    mov rdi, [rsp + {RDI}]
    mov rbp, [rsp + {RBP}]
    mov r8, [rsp + {R8}]
    mov r9, [rsp + {R9}]
    mov r10, [rsp + {R10}]
    mov r12, [rsp + {R12}]
    mov r13, [rsp + {R13}]
    mov r14, [rsp + {R14}]
    mov r15, [rsp + {R15}]
    mov rcx, [rsp + {RIP}]
    mov r11, [rsp + {RFLAGS}]
    mov rsp, [rsp + {RSP}]
    swapgs
    sysretq

resume_full:
    cmp qword ptr [rsp + {RESUME}], 1
    jne guest_or_idle
    # IRET to an address that is not canonical would fault in ring 0: a thread can be started at any address.
    mov rax, [rsp + {RIP}]
    shr rax, 47
    jnz bad_rip
    fxrstor64 [rsp + {FPU}]
    mov rax, rsp
    mov rsp, gs:[{KERNEL_STACK}]
    push {USER_DATA}
    push qword ptr [rax + {RSP}]
    push qword ptr [rax + {RFLAGS}]
    push {USER_CODE}
    push qword ptr [rax + {RIP}]
    load_most
    mov rax, [rax + {RAX}]
    swapgs
    iretq

    # As if ring 3 had jumped there: a general protection fault of the thread's.
bad_rip:
    mov rdi, gs:[{THIS}]
    mov esi, 13
    xor edx, edx
    xor ecx, ecx
    mov rsp, gs:[{KERNEL_STACK}]
    call {on_exception}
    jmp resume

guest_or_idle:
    cmp qword ptr [rsp + {RESUME}], {GUEST}
    jne idle

# Guest mode and back (AMD APM 2, 15.5). VMRUN and #VMEXIT switch RAX, RSP, RIP, RFLAGS, the segments CS, SS, DS and ES, the
# control registers and the descriptor tables; VMLOAD and VMSAVE the other segments and the system-call registers, which are
# always the same on this side. GIF is clear in between, so no NMI sees half of either; IF is set while the guest runs, so
# that the node's interrupts end it. The other registers are in the vCPU's state page: its service finds and changes them
# there, and nothing is copied.
    fxrstor64 [rsp + {FPU}]
    look_at_interrupts
    mov rax, rsp
    mov rsp, gs:[{KERNEL_STACK}]
    push qword ptr gs:[{HOST_SAVE}]
    push rax
    mov rcx, {DIRECT_MAP}
    add rcx, [rax + {STATE_PAGE}]
    push rcx
    push qword ptr [rax + {CONTROL_BLOCK}]
    mov rax, rcx
    load_most
    pop rax
    clgi
    sti
    vmload rax
    vmrun rax
    vmsave rax
    cli
    mov rax, [rsp + 16]
    vmload rax
    stgi
    mov rax, [rsp]
    store_most
    mov rax, [rsp + 8]
    fxsave64 [rax + {FPU}]
    ldmxcsr [rip + {INITIAL_FPU} + 24]
    mov rsi, gs:[{STATUS}]
    mov dword ptr [rsi], 0
    mov rsi, [rax + {CONTROL_BLOCK}]
    mov rdi, {DIRECT_MAP}
    mov rsp, gs:[{KERNEL_STACK}]
    # An interrupt of the node's is still to come: it may now, and its handler goes on.
    cmp qword ptr [rsi + rdi + {EXIT_CODE}], {EXIT_INTERRUPT}
    je interrupts_begin
guest_exit:
    mov rdi, gs:[{THIS}]
    call {on_guest_exit}
    jmp resume

idle:
    mov rsp, gs:[{KERNEL_STACK}]
    jmp idle_begin

# Where interrupts may come in ring 0. What is current then is all that counts.
interrupts_begin:
    sti
    nop
    cli
    jmp guest_exit
idle_begin:
    look_at_interrupts
    sti
    hlt
    cli
    jmp idle_begin
interrupts_end:

# Saves all of ring 3's state. On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS. Leaves RDI, RSI and RDX as
# a handler's first arguments: block, vector, error code.
.macro save_user
    swapgs
    push rax
    mov rax, gs:[{CURRENT}]
    store_most
    pop qword ptr [rax + {RAX}]
    pop rsi
    pop rdx
    pop qword ptr [rax + {RIP}]
    pop rcx
    pop qword ptr [rax + {RFLAGS}]
    pop qword ptr [rax + {RSP}]
    fxsave64 [rax + {FPU}]
    mov qword ptr [rax + {RESUME}], 1
    ldmxcsr [rip + {INITIAL_FPU} + 24]
    cld
    mov rdi, gs:[{THIS}]
    mov rsp, gs:[{KERNEL_STACK}]
.endm

interrupt_common:
    test byte ptr [rsp + 24], 3
    jz interrupt_in_ring_0
    save_user
    call {on_interrupt}
    jmp resume
    # In ring 0 an interrupt is legal in two places alone, which hold nothing worth saving.
interrupt_in_ring_0:
    cmp qword ptr [rsp + 16], offset interrupts_begin
    jb fatal
    cmp qword ptr [rsp + 16], offset interrupts_end
    jae fatal
    cld
    mov esi, [rsp]
    mov rdi, gs:[{THIS}]
    mov rsp, gs:[{KERNEL_STACK}]
    call {on_interrupt}
    jmp resume

exception_common:
    test byte ptr [rsp + 24], 3
    jz fatal
    save_user
    mov rcx, cr2
    call {on_exception}
    jmp resume

# A defect, or hardware that failed. Whose GS this is cannot be told from the ring: the fault may lie between an
# entry's first instruction and its SWAPGS. The kernel's base is the negative one.
fatal:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov ecx, {MSR_GS_BASE}
    rdmsr
    test edx, edx
    js kernel_gs
    swapgs
kernel_gs:
    mov rdi, rsp
    and rsp, -16
    call {on_fatal}
    ud2

# One NMI is how a core that panics stops the others; any other is passed over. No register changes, GS is not looked at.
nmi:
    cmp dword ptr [rip + {STOPPING}], 0
    jne stop
    iretq
stop:
    cli
    hlt
    jmp stop

# A spurious interrupt of the local APIC or the 8259: nothing to acknowledge (Intel SDM 3A, 11.9).
spurious:
    iretq

# One entry of 16 bytes for each vector.
.balign 16
.global vector_stubs
vector_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if vector == 2
    jmp nmi
    .elseif vector == 8
    push vector
    jmp fatal
    .elseif vector == 18
    push 0
    push vector
    jmp fatal
    .elseif vector == 10 || vector == 11 || vector == 12 || vector == 13 || vector == 14 || vector == 17 || vector == 21 || vector == 29 || vector == 30
    push vector
    jmp exception_common
    .elseif vector < 32
    push 0
    push vector
    jmp exception_common
    .elseif vector == 0x27 || vector == 0x2f || vector == 0xff
    jmp spurious
    .else
    push 0
    push vector
    jmp interrupt_common
    .endif
    .set vector, vector + 1
.endr
