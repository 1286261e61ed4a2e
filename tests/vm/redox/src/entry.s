// The machine as multiboot leaves it: 32-bit protected mode, flat segments, no paging, no stack;
// eax = 0x2badb002, ebx = address of the information structure (Multiboot 0.6.96, section 3.2).

.set MAGIC, 0x1badb002
// Modules on page boundaries; memory map wanted; addresses are in this header, not in the ELF header.
.set FLAGS, (1 << 0) | (1 << 1) | (1 << 16)

.section .multiboot, "ax"
.balign 4
multiboot_header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long multiboot_header, loader_start, loader_data_end, loader_end, loader_entry

.code32
.global loader_entry
loader_entry:
    cli
    cld
    mov esp, offset loader_stack_end
    mov edi, eax
    mov esi, ebx

    // Identity and the kernel's view of physical memory share one table: the first 4 GiB in 2 MiB pages.
    mov eax, offset low_directories
    or eax, 3
    mov ecx, 0
1:  mov [low_pointers + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jne 1b

    mov eax, 0x83
    mov ecx, 0
2:  mov [low_directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 2b

    mov eax, offset low_pointers
    or eax, 3
    mov [root], eax
    mov [root + 256 * 8], eax
    mov eax, offset high_pointers
    or eax, 3
    mov [root + 511 * 8], eax
    mov eax, offset kernel_directory
    or eax, 3
    mov [high_pointers + 510 * 8], eax

    mov eax, offset root
    mov cr3, eax
    // PSE, PAE, PGE, OSFXSR, OSXMMEXCPT.
    mov eax, cr4
    or eax, (1 << 4) | (1 << 5) | (1 << 7) | (1 << 9) | (1 << 10)
    mov cr4, eax
    // EFER: LME and NXE.
    mov ecx, 0xc0000080
    rdmsr
    or eax, (1 << 8) | (1 << 11)
    wrmsr
    // Paging, write protection, no emulation of the floating point unit.
    mov eax, cr0
    and eax, 0xfffffffb
    or eax, (1 << 31) | (1 << 16) | (1 << 1)
    mov cr0, eax

    lgdt [descriptor_pointer]
    // A far return is the jump into 64-bit code; the linker resolves the address.
    push 8
    mov eax, offset long_entry
    push eax
    retf

.code64
long_entry:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset loader_stack_end
    mov edi, edi
    mov esi, esi
    call {load}
3:  hlt
    jmp 3b

.section .data
.balign 8
descriptors:
    .quad 0
    .quad 0x00af9a000000ffff // 64-bit code
    .quad 0x00cf92000000ffff // data
descriptor_pointer:
    .word 23
    .quad descriptors

.section .bss
.balign 4096
root: .skip 4096
low_pointers: .skip 4096
low_directories: .skip 4 * 4096
high_pointers: .skip 4096
.global kernel_directory
kernel_directory: .skip 4096
loader_stack: .skip 65536
loader_stack_end:
.section .text
