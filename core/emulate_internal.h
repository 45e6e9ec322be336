// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the emulator's files share: emulate.c (frame, memory, operands), emulate_alu.c (arithmetic),
// emulate_segment.c (segment registers), emulate_ops.c (the instructions and their table);
// emulate_stack.c, emulate_string.c, emulate_far.c, emulate_rare.c, emulate_vector.c,
// emulate_system.c, emulate_selector.c and emulate_syscall.c (more of them); task.c (task
// switches).

#pragma once

#include <arch/x86/regs.h>
#include <nestor/descriptor.h>
#include <nestor/emulate.h>
#include <nestor/vcpu.h>

// What the frame does around an instruction's function.
enum op_flags {
    OP_LOAD_DST = BIT(0),
    OP_LOAD_SRC = BIT(1),
    OP_STORE_DST = BIT(2),
    OP_OWN_ACCESS = BIT(3), // addresses, accesses and the EMULATE_ACCESSED point are its own
    OP_PORT = BIT(4),       // I/O permission is checked
    OP_VM86 = BIT(5),       // PUSHF, POPF: IOPL counts in VM86
    OP_CPL0 = BIT(6),
    OP_SHSTK = BIT(7),     // a shadow stack would see it: unhandled where there is one
    OP_PROTECTED = BIT(8), // #UD in real mode and VM86
    OP_UMIP = BIT(9),      // CR4.UMIP keeps it from all but CPL 0
    OP_LONG = BIT(10),     // #UD outside 64-bit code
    OP_IBT = BIT(11),      // indirect branch tracking would see it, likewise
    OP_INWARD = BIT(12),   // may lead out of CPL 3: what sees it is the supervisor's too
    OP_OUTWARD = BIT(13),  // may lead to CPL 3
    OP_CR4 = BIT(14),      // emu_check_cr4() looks at it before an intercept
    OP_CET = OP_SHSTK | OP_IBT,
};

struct emulate_op {
    enum emulate_result (*run)(struct emulate_ctx *c);
    u16 flags;
};

extern const struct emulate_op emulate_op_table[INSN_OP_COUNT];

static inline u64 size_mask(unsigned size)
{
    return size == 8 ? ~0ull : (1ull << (8 * size)) - 1;
}

static inline u64 sign_extend(u64 value, unsigned size)
{
    u64 sign = 1ull << (8 * size - 1);

    return ((value & size_mask(size)) ^ sign) - sign;
}

static inline enum emulate_result raise_gp0(struct emulate_ctx *c)
{
    return emulate_raise(c, VECTOR_GP, true, 0);
}

static inline bool in_vm86(const struct emulate_ctx *c)
{
    return c->cr0 & CR0_PE && c->regs->rflags & RFLAGS_VM;
}

static inline unsigned iopl(const struct emulate_ctx *c)
{
    return (unsigned)(c->regs->rflags >> 12) & 3;
}

// In VM86 with IOPL < 3, VME lets 16-bit PUSHF and POPF work on VIF (SDM volume 3 section 21.3.1).
static inline bool flags_virtual(const struct emulate_ctx *c)
{
    return in_vm86(c) && iopl(c) < 3;
}

// --- emulate.c ---
// Registers by number and operand size: AH..BH without REX, 32-bit writes clear the upper half.
u64 emu_reg_get(const struct emulate_ctx *c, unsigned n, unsigned size);
void emu_reg_set(struct emulate_ctx *c, unsigned n, unsigned size, u64 value);
u64 emu_operand_get(struct emulate_ctx *c, u8 operand, unsigned size); // registers and immediates
void emu_operand_set(struct emulate_ctx *c, u8 operand, unsigned size, u64 value);
void emu_commit(struct emulate_ctx *c);
void emu_start_over(struct emulate_ctx *c); // the registers and flags before the instruction
enum emulate_result emu_repeat(struct emulate_ctx *c);
// Linear accesses of any alignment, split at pages; a crossing write is checked before it begins.
enum emulate_result emu_mem_read(struct emulate_ctx *c, gva_t la, void *buf, unsigned size,
                                 unsigned access);
enum emulate_result emu_mem_write(struct emulate_ctx *c, gva_t la, const void *buf, unsigned size);
enum emulate_result emu_mem_check(struct emulate_ctx *c, gva_t la, unsigned size);
enum emulate_result emu_operand_address(struct emulate_ctx *c, unsigned access); // sets c->linear
enum emulate_result emu_intercept(struct emulate_ctx *c, enum emulate_point point);

// --- emulate_ops.c ---
enum emulate_result emu_load_segment(struct emulate_ctx *c, enum segment_index seg, u64 selector);

// --- emulate_stack.c ---
enum emulate_result emu_push(struct emulate_ctx *c, u64 value); // of the operand size
enum emulate_result emu_pop(struct emulate_ctx *c, u64 *value);
void emu_stack_move(struct emulate_ctx *c, u64 bytes); // wraps at the stack's width
enum emulate_result emu_run_push(struct emulate_ctx *c);
enum emulate_result emu_run_pop(struct emulate_ctx *c);
enum emulate_result emu_run_pop_sreg(struct emulate_ctx *c);
enum emulate_result emu_run_pushf(struct emulate_ctx *c);
enum emulate_result emu_run_popf(struct emulate_ctx *c);
enum emulate_result emu_run_pusha(struct emulate_ctx *c);
enum emulate_result emu_run_popa(struct emulate_ctx *c);
enum emulate_result emu_run_enter(struct emulate_ctx *c);
enum emulate_result emu_run_leave(struct emulate_ctx *c);

// --- emulate_string.c ---
enum emulate_result emu_run_string(struct emulate_ctx *c);
enum emulate_result emu_run_in(struct emulate_ctx *c);
enum emulate_result emu_run_out(struct emulate_ctx *c);

// --- emulate_rare.c, emulate_vector.c, emulate_system.c: for the table in emulate_ops.c ---
enum emulate_result emu_run_scan(struct emulate_ctx *c);
enum emulate_result emu_run_count_zeros(struct emulate_ctx *c);
enum emulate_result emu_run_popcnt(struct emulate_ctx *c);
enum emulate_result emu_run_crc32(struct emulate_ctx *c);
enum emulate_result emu_run_adjust(struct emulate_ctx *c);
enum emulate_result emu_run_bound(struct emulate_ctx *c);
enum emulate_result emu_run_arpl(struct emulate_ctx *c);
enum emulate_result emu_run_vec_load(struct emulate_ctx *c);
enum emulate_result emu_run_vec_store(struct emulate_ctx *c);
enum emulate_result emu_run_x87(struct emulate_ctx *c);
enum emulate_result emu_run_system(struct emulate_ctx *c);
enum emulate_result emu_check_cr4(struct emulate_ctx *c);
enum emulate_result emu_run_xgetbv(struct emulate_ctx *c);
enum emulate_result emu_run_mov_dr(struct emulate_ctx *c);
enum emulate_result emu_run_invlpg(struct emulate_ctx *c);
enum emulate_result emu_run_store_table(struct emulate_ctx *c);
enum emulate_result emu_run_load_table(struct emulate_ctx *c);
enum emulate_result emu_run_look(struct emulate_ctx *c);
enum emulate_result emu_run_syscall(struct emulate_ctx *c);
enum emulate_result emu_run_sysret(struct emulate_ctx *c);
enum emulate_result emu_run_sysenter(struct emulate_ctx *c);
enum emulate_result emu_run_sysexit(struct emulate_ctx *c);
enum emulate_result emu_run_load_system(struct emulate_ctx *c);

// A canonical address; an access within a segment's limit.
bool emu_canonical(const struct emulate_ctx *c, u64 address);
// What a base in a system register may be: by the widest addresses that the CPU has, whatever
// CR4.LA57 says.
bool emu_canonical_base(const struct emulate_ctx *c, u64 address);
// Whether CET, as the guest has it now, has a part in an instruction of these flags.
bool emu_cet_sees(struct emulate_ctx *c, u16 flags);
bool emu_limit_allows(const struct segment *s, u64 offset, unsigned size);

// --- emulate_segment.c ---
enum emulate_result emu_raise_selector(struct emulate_ctx *c, u8 vector, u16 selector);
struct segment emu_segment(struct emulate_ctx *c, enum segment_index seg); // as loaded so far
void emu_set_segment(struct emulate_ctx *c, enum segment_index seg, struct segment s);
bool emu_is_real(const struct emulate_ctx *c);
// What a selector loads without descriptors: a real-mode segment, or VM86's.
struct segment emu_real_or_vm86(struct emulate_ctx *c, enum segment_index seg, u16 selector);
struct segment segment_vm86(u16 selector);
// Beyond the table's limit: `vector`.
enum emulate_result emu_read_descriptor(struct emulate_ctx *c, u16 selector, u8 vector,
                                        struct descriptor *d);
// The upper half of a system descriptor in IA-32e mode; its type field must be 0.
enum emulate_result emu_read_high(struct emulate_ctx *c, struct descriptor *d);
// Sets and clears type bits (accessed, busy) of the descriptor in memory too.
enum emulate_result emu_change_type(struct emulate_ctx *c, struct descriptor *d, u8 set, u8 clear);
// The far pointer that is the instruction's operand.
enum emulate_result emu_far_pointer(struct emulate_ctx *c, u64 *offset, u16 *selector);
enum emulate_result emu_run_load_far(struct emulate_ctx *c);

// --- emulate_far.c ---
// The flags that a task switch or IRET to VM86 loads.
#define RFLAGS_LOADED                                                                      \
    (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_TF | RFLAGS_IF |   \
     RFLAGS_DF | RFLAGS_OF | RFLAGS_IOPL | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | RFLAGS_AC | \
     RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)
struct far_stack {
    struct segment ss;
    u64 sp;
    u8 width;  // of the stack pointer
    u16 error; // of its #SS
};
enum emulate_result emu_far_push(struct emulate_ctx *c, struct far_stack *st, u64 value,
                                 unsigned size);
enum emulate_result emu_run_far(struct emulate_ctx *c);
enum emulate_result emu_run_ret_far(struct emulate_ctx *c);
enum emulate_result emu_run_iret(struct emulate_ctx *c);
enum emulate_result emu_run_int(struct emulate_ctx *c);

// --- emulate_alu.c: a and b may have garbage above size; the result does not ---
u64 alu_binary(u8 op, u64 a, u64 b, unsigned size, u64 *flags); // INSN_ADD..INSN_CMP, TEST as AND
u64 alu_step(u8 op, u64 a, unsigned size, u64 *flags);          // INSN_INC, INSN_DEC
u64 alu_shift(u8 op, u64 a, unsigned count, unsigned size, u64 *flags);
u64 alu_double_shift(u8 op, u64 a, u64 b, unsigned count, unsigned size, u64 *flags);
void alu_multiply(u64 a, u64 b, bool is_signed, unsigned size, u64 *low, u64 *high, u64 *flags);
bool alu_divide(u64 *low, u64 *high, u64 divisor, bool is_signed, unsigned size); // false: #DE
bool alu_condition(u8 code, u64 flags);
