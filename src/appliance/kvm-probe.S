# A ROM that tests whether a virtual machine really runs code, and at what speed.
# real -> protected -> long mode with paging -> timed loop -> isa-debug-exit.
# Writes R,P,L,T on port 0xE9 (isa-debugcon) as it passes each stage; exit code via 0xF4.
.code16
.global _start
.org 0
start16:
  cli
  movb $'R',%al
  outb %al,$0xE9
  lgdtl %cs:gdtr          # F000:gdtr
  movl %cr0,%eax
  orb $1,%al
  movl %eax,%cr0
  ljmpl $0x08,$(0xF0000+start32)
.code32
start32:
  movw $0x10,%ax
  movw %ax,%ds
  movw %ax,%es
  movw %ax,%ss
  movb $'P',%al
  outb %al,$0xE9
  # page tables at 0x10000: PML4, 0x11000: PDPT, one 1-GiB span through 0x12000 PD of 2 MiB pages
  cld
  xorl %eax,%eax
  movl $0x10000,%edi
  movl $0x0c00,%ecx
  rep stosl
  movl $0x11003,0x10000
  movl $0x12003,0x11000
  movl $0x83,0x12000       # 0..2 MiB identity: covers the tables and this ROM at 0xF0000
  movl $0x10000,%eax
  movl %eax,%cr3
  movl %cr4,%eax
  orb $0x20,%al            # PAE
  movl %eax,%cr4
  movl $0xC0000080,%ecx    # EFER
  rdmsr
  orl $0x100,%eax          # LME
  wrmsr
  movl %cr0,%eax
  orl $0x80000000,%eax     # PG
  movl %eax,%cr0
  ljmpl $0x18,$(0xF0000+start64)
.code64
start64:
  movb $'L',%al
  outb %al,$0xE9
  movl $LOOPS,%ecx
1: decl %ecx
  jnz 1b
  movb $'T',%al
  outb %al,$0xE9
  movb $0x10,%al
  outb %al,$0xF4
  hlt
  jmp .-1
.balign 8
gdt: .quad 0
  .quad 0x00CF9B000000FFFF # 08 code32
  .quad 0x00CF93000000FFFF # 10 data
  .quad 0x00AF9B000000FFFF # 18 code64
gdtr: .word 31
  .long 0xF0000+gdt
.org 0xFFF0
.code16
  .byte 0xEA               # ljmp F000:0000 -- keeps us under 1 MiB
  .word 0, 0xF000
.org 0xFFFF
  .byte 0
