// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's arithmetic and its flags (Intel SDM volume 1 section 3.4.3.1 and appendix A).
// Where the manual leaves a flag undefined the value here is arbitrary.

#include "emulate_internal.h"

#define ARITHMETIC (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)

typedef unsigned __int128 u128;

static u64 sign_bit(unsigned size)
{
    return 1ull << (8 * size - 1);
}

static void put_flag(u64 *flags, u64 flag, bool value)
{
    *flags = value ? *flags | flag : *flags & ~flag;
}

static void result_flags(u64 *flags, u64 result, unsigned size)
{
    put_flag(flags, RFLAGS_ZF, (result & size_mask(size)) == 0);
    put_flag(flags, RFLAGS_SF, result & sign_bit(size));
    put_flag(flags, RFLAGS_PF, !__builtin_parity((unsigned)result & 0xff));
}

// carries: the carry or borrow out of every bit position.
static u64 sum_flags(u64 *flags, u64 a, u64 b, u64 result, u64 carries, u64 overflow, unsigned size)
{
    put_flag(flags, RFLAGS_CF, carries & sign_bit(size));
    put_flag(flags, RFLAGS_OF, overflow & sign_bit(size));
    put_flag(flags, RFLAGS_AF, (a ^ b ^ result) & 0x10);
    result_flags(flags, result, size);
    return result & size_mask(size);
}

static u64 add(u64 a, u64 b, u64 carry, unsigned size, u64 *flags)
{
    u64 r = a + b + carry;

    return sum_flags(flags, a, b, r, (a & b) | ((a | b) & ~r), (a ^ r) & (b ^ r), size);
}

static u64 subtract(u64 a, u64 b, u64 borrow, unsigned size, u64 *flags)
{
    u64 r = a - b - borrow;

    return sum_flags(flags, a, b, r, (~a & b) | ((~a | b) & r), (a ^ b) & (a ^ r), size);
}

static u64 logic(u64 r, unsigned size, u64 *flags)
{
    *flags &= ~ARITHMETIC;
    result_flags(flags, r, size);
    return r & size_mask(size);
}

u64 alu_binary(u8 op, u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 carry = *flags & RFLAGS_CF;

    // clang-format off
    switch (op) {
    case INSN_ADD: return add(a, b, 0, size, flags);
    case INSN_ADC: return add(a, b, carry, size, flags);
    case INSN_SBB: return subtract(a, b, carry, size, flags);
    case INSN_SUB:
    case INSN_CMP: return subtract(a, b, 0, size, flags);
    case INSN_OR: return logic(a | b, size, flags);
    case INSN_XOR: return logic(a ^ b, size, flags);
    default: return logic(a & b, size, flags);
    }
    // clang-format on
}

u64 alu_step(u8 op, u64 a, unsigned size, u64 *flags)
{
    u64 carry = *flags & RFLAGS_CF;
    u64 r = op == INSN_INC ? add(a, 1, 0, size, flags) : subtract(a, 1, 0, size, flags);

    put_flag(flags, RFLAGS_CF, carry);
    return r;
}

static u64 rotate(bool left, u64 a, unsigned count, unsigned size, u64 *flags)
{
    unsigned bits = 8 * size;
    u64 top, r = a & size_mask(size);

    count %= bits;
    if (!left)
        count = (bits - count) % bits;
    if (count)
        r = ((r << count) | (r >> (bits - count))) & size_mask(size);
    top = r & sign_bit(size);
    put_flag(flags, RFLAGS_CF, left ? r & 1 : top);
    put_flag(flags, RFLAGS_OF, left ? !top != !(r & 1) : !top != !(r & sign_bit(size) >> 1));
    return r;
}

// Through the carry: bit by bit, since the register is one bit wider than the operand.
static u64 rotate_carry(bool left, u64 a, unsigned count, unsigned size, u64 *flags)
{
    u64 sign = sign_bit(size), r = a & size_mask(size), carry = *flags & RFLAGS_CF;

    for (count %= 8 * size + 1; count; count--) {
        u64 out = left ? !!(r & sign) : r & 1;

        r = left ? (r << 1 | carry) & size_mask(size) : r >> 1 | (carry ? sign : 0);
        carry = out;
    }
    put_flag(flags, RFLAGS_CF, carry);
    put_flag(flags, RFLAGS_OF, left ? !(r & sign) != !carry : !(r & sign) != !(r & sign >> 1));
    return r;
}

static u64 shift_left(u64 a, unsigned count, unsigned size, u64 *flags)
{
    u128 wide = (u128)(a & size_mask(size)) << count;
    u64 r = (u64)wide & size_mask(size);
    bool carry = (wide >> (8 * size)) & 1;

    put_flag(flags, RFLAGS_CF, carry);
    put_flag(flags, RFLAGS_OF, carry != !!(r & sign_bit(size)));
    result_flags(flags, r, size);
    return r;
}

static u64 shift_right(u64 a, unsigned count, unsigned size, u64 *flags, bool arithmetic)
{
    u64 value = arithmetic ? sign_extend(a, size) : a & size_mask(size);
    u64 last = arithmetic ? (u64)((s64)value >> (count - 1)) : value >> (count - 1);
    u64 r = (arithmetic ? (u64)((s64)last >> 1) : last >> 1) & size_mask(size);

    put_flag(flags, RFLAGS_CF, last & 1);
    put_flag(flags, RFLAGS_OF, !arithmetic && a & sign_bit(size));
    result_flags(flags, r, size);
    return r;
}

u64 alu_shift(u8 op, u64 a, unsigned count, unsigned size, u64 *flags)
{
    count &= size == 8 ? 63 : 31;
    if (!count)
        return a & size_mask(size);
    // clang-format off
    switch (op) {
    case INSN_ROL:
    case INSN_ROR: return rotate(op == INSN_ROL, a, count, size, flags);
    case INSN_RCL:
    case INSN_RCR: return rotate_carry(op == INSN_RCL, a, count, size, flags);
    case INSN_SHR:
    case INSN_SAR: return shift_right(a, count, size, flags, op == INSN_SAR);
    default: return shift_left(a, count, size, flags);
    }
    // clang-format on
}

// With 16-bit operands and a count above 16 the manual leaves everything undefined.
u64 alu_double_shift(u8 op, u64 a, u64 b, unsigned count, unsigned size, u64 *flags)
{
    unsigned bits = 8 * size;
    u64 r, carry, mask = size_mask(size);

    count &= size == 8 ? 63 : 31;
    a &= mask;
    b &= mask;
    if (!count)
        return a;
    if (op == INSN_SHLD) {
        u128 wide = ((u128)a << bits | b) << (count % (bits + 1));

        r = (u64)(wide >> bits);
        carry = a >> ((bits - count) & 63);
    } else {
        u128 wide = ((u128)b << bits | a) >> (count % (bits + 1));

        r = (u64)wide;
        carry = a >> ((count - 1) & 63);
    }
    put_flag(flags, RFLAGS_CF, carry & 1);
    put_flag(flags, RFLAGS_OF, (r ^ a) & sign_bit(size));
    result_flags(flags, r, size);
    return r & mask;
}

void alu_multiply(u64 a, u64 b, bool is_signed, unsigned size, u64 *low, u64 *high, u64 *flags)
{
    u64 mask = size_mask(size);
    u128 product;
    bool overflow;

    if (is_signed)
        product = (u128)((__int128)(s64)sign_extend(a, size) * (s64)sign_extend(b, size));
    else
        product = (u128)(a & mask) * (b & mask);
    *low = (u64)product & mask;
    *high = (u64)(product >> (8 * size)) & mask;
    overflow = is_signed ? *high != (*low & sign_bit(size) ? mask : 0) : *high != 0;
    put_flag(flags, RFLAGS_CF, overflow);
    put_flag(flags, RFLAGS_OF, overflow);
}

// Shift and subtract: a 128-bit division would call a library that the hypervisor does not have.
// high < divisor, so that the quotient fits.
static void divide_unsigned(u64 *low, u64 *high, u64 divisor)
{
    u64 remainder = *high, quotient = *low;

    for (unsigned i = 0; i < 64; i++) {
        bool carry = remainder >> 63;

        remainder = remainder << 1 | quotient >> 63;
        quotient <<= 1;
        if (carry || remainder >= divisor) {
            remainder -= divisor;
            quotient |= 1;
        }
    }
    *low = quotient;
    *high = remainder;
}

// (high:low) / divisor -> low = quotient, high = remainder; both in and out of `size` bytes each.
bool alu_divide(u64 *low, u64 *high, u64 divisor, bool is_signed, unsigned size)
{
    unsigned bits = 8 * size;
    u64 mask = size_mask(size), limit = mask, h, l;
    u128 dividend = (u128)(*high & mask) << bits | (*low & mask);
    bool negative = is_signed && *high & sign_bit(size);
    bool negative_divisor = is_signed && divisor & sign_bit(size);

    divisor = (negative_divisor ? 0 - divisor : divisor) & mask;
    if (negative)
        dividend = 0 - dividend;
    if (size < 8)
        dividend &= ((u128)1 << (2 * bits)) - 1;
    h = (u64)(dividend >> 64);
    l = (u64)dividend;
    if (is_signed)
        limit = negative != negative_divisor ? sign_bit(size) : mask >> 1;
    if (divisor == 0 || h >= divisor)
        return false;
    divide_unsigned(&l, &h, divisor);
    if (l > limit)
        return false;
    *low = (negative != negative_divisor ? 0 - l : l) & mask;
    *high = (negative ? 0 - h : h) & mask;
    return true;
}

bool alu_condition(u8 code, u64 flags)
{
    bool less = !(flags & RFLAGS_SF) != !(flags & RFLAGS_OF);
    bool value = false;

    // clang-format off
    switch (code >> 1 & 7) {
    case 0: value = flags & RFLAGS_OF; break;
    case 1: value = flags & RFLAGS_CF; break;
    case 2: value = flags & RFLAGS_ZF; break;
    case 3: value = flags & (RFLAGS_CF | RFLAGS_ZF); break;
    case 4: value = flags & RFLAGS_SF; break;
    case 5: value = flags & RFLAGS_PF; break;
    case 6: value = less; break;
    case 7: value = less || flags & RFLAGS_ZF; break;
    }
    // clang-format on
    return value != (code & 1);
}
