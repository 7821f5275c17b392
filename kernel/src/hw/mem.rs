//! The five symbols that compiled Rust expects of a C library, and the one of an unwinder that is never used.
//!
//! Short copies, which messages and registers are, go by words; long ones by the string instructions, eight bytes an
//! iteration: as fast as `rep movsb` on processors with fast strings, and an eighth of the iterations elsewhere.
#![expect(unsafe_code, reason = "symbols with fixed names, in assembly")]

core::arch::global_asm!(
    r#"
.section .text.memory, "ax"

.global memcpy
memcpy:                             # rdi to, rsi from, rdx bytes; returns rdi
    mov rax, rdi
    cmp rdx, 16
    jb 3f
    cmp rdx, 64
    ja 5f
    mov r8, [rsi + rdx - 16]        # the last 16 bytes, which may overlap the ones before
    mov r9, [rsi + rdx - 8]
2:  sub rdx, 16
    jbe 4f
    mov r10, [rsi]
    mov r11, [rsi + 8]
    mov [rdi], r10
    mov [rdi + 8], r11
    add rsi, 16
    add rdi, 16
    jmp 2b
4:  mov [rdi + rdx], r8
    mov [rdi + rdx + 8], r9
    ret
3:  test dl, 8
    jz 6f
    mov r8, [rsi]
    mov r9, [rsi + rdx - 8]
    mov [rdi], r8
    mov [rdi + rdx - 8], r9
    ret
5:  mov rcx, rdx
    shr rcx, 3
    rep movsq
6:  mov ecx, edx
    and ecx, 7
    rep movsb
    ret

.global memmove
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx                    # below: the target begins inside the source, so copy from the end
    jae memcpy_forward
    mov rax, rdi
    mov rcx, rdx
    lea rsi, [rsi + rdx - 1]
    lea rdi, [rdi + rdx - 1]
    std
    rep movsb
    cld
    ret
memcpy_forward:                     # in order, because the source may begin inside the target
    mov rax, rdi
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    mov ecx, edx
    and ecx, 7
    rep movsb
    ret

.global memset
memset:                             # rdi to, esi value, rdx bytes; returns rdi
    mov r8, rdi
    movzx eax, sil
    movabs rcx, 0x0101010101010101
    imul rax, rcx
    mov rcx, rdx
    shr rcx, 3
    rep stosq
    mov ecx, edx
    and ecx, 7
    rep stosb
    mov rax, r8
    ret

.global memcmp
.global bcmp
memcmp:
bcmp:
    xor eax, eax
    xor ecx, ecx
2:  cmp rcx, rdx
    je 3f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    jz 2b
3:  ret
"#
);

/// Named by the precompiled `core`; nothing unwinds, so nothing calls it.
// SAFETY: the name is the one that the compiler expects, and no other item has it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
