//! Boots from the PVH entry (Xen docs/misc/pvh.pandoc) to Rust in 64-bit mode. At the entry: 32-bit protected mode,
//! paging off, EBX holds the address of the start info. Maps the first 4 GiB one to one. Also contains the entries of
//! exceptions and interrupts.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18              # lengths of name and content; type 18: PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start, 0

    .section .bss
    .balign 4096
pml4:   .skip 4096
pdpt:   .skip 4096
pds:    .skip 4 * 4096
stack:  .skip 256 * 1024
stack_end:

    .section .rodata
    .balign 8
gdt32:  .quad 0, 0x00209a0000000000, 0x0000920000000000
gdt32_pointer:
    .word 23
    .long gdt32

    .section .text.boot, "ax", @progbits
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    movl $(pdpt + 3), pml4      # present, writable
    movl $4, %ecx
    movl $pdpt, %edi
    movl $(pds + 3), %eax
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $2048, %ecx
    movl $pds, %edi
    movl $0x83, %eax            # present, writable, 2 MiB
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl $0x620, %eax           # CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl $0x80010033, %eax      # CR0: PG, WP, NE, ET, MP, PE; EM clear
    movl %eax, %cr0
    lgdt gdt32_pointer
    ljmp $8, $3f
    .code64
3:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movabsq $stack_end, %rsp
    movl %ebx, %edi
    xorl %ebp, %ebp
    call start
    ud2

    # Exceptions end the run. Those with an error code have it on the stack already.
    .macro exception vector, code
    .if \code == 0
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
    .balign 16
    .endm

    .balign 16
    .globl exception_entries
exception_entries:
    .irp vector, 0, 1, 2, 3, 4, 5, 6, 7
    exception \vector, 0
    .endr
    exception 8, 1
    exception 9, 0
    .irp vector, 10, 11, 12, 13, 14
    exception \vector, 1
    .endr
    .irp vector, 15, 16
    exception \vector, 0
    .endr
    exception 17, 1
    .irp vector, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    exception \vector, 0
    .endr

exception_common:
    popq %rdi                   # vector
    popq %rsi                   # error code
    popq %rdx                   # address of the instruction
    movq %cr2, %rcx
    andq $-16, %rsp
    call exception
    ud2

    # Interrupts 0x40 to 0x4f are counted and acknowledged, nothing else: on a stack of their own, so the
    # red zone of what they interrupt is left alone.
    .balign 16
    .globl interrupt_entries
interrupt_entries:
    .set index, 0
    .rept 16
    lock incl interrupt_counts + 4 * index
    jmp interrupt_common
    .balign 32
    .set index, index + 1
    .endr

interrupt_common:
    pushq %rax
    movl $0xfee000b0, %eax      # the local APIC's EOI register
    movl $0, (%rax)
    popq %rax
    iretq
"#,
    options(att_syntax)
);
