// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Reaching a guest's memory by its own addresses: linear accesses through its paging, instruction
// fetch, and the length of an instruction that exited where the hardware does not say it (SVM
// without nRIP save).
//
// A small cache remembers translations with the paging-structure entries that they came from, and
// compares those entries with memory at each use: a hit is what a walk would find, for a tenth of
// its cost.

#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/guest_walk.h>
#include <nestor/nested.h>
#include <nestor/l1_stage2.h>
#include <nestor/page.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/tlb.h>

enum { CACHE_SLOTS = 16, CACHE_ENTRIES = 5, DECODED_SLOTS = 8, RETRIES = 1000 };

// What a translation depends on beside CR3, and RFLAGS.AC for data. No bit is in two of them.
#define CR0_TRANSLATION (CR0_PG | CR0_WP)
#define CR4_TRANSLATION \
    (CR4_PSE | CR4_PAE | CR4_LA57 | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_PKS | CR4_CET)
#define EFER_TRANSLATION (EFER_LMA | EFER_NX)
_Static_assert(!(CR0_TRANSLATION & CR4_TRANSLATION) &&
                   !((CR0_TRANSLATION | CR4_TRANSLATION) & EFER_TRANSLATION),
               "the paging mode is one word");

#define UNSEEN (~0ull)

struct translation {
    u64 tag; // tag_of(); 0: nothing
    u64 cr3, mode;
    u64 world; // vcpu->world
    struct {
        const u64 *at;
        u64 value;
    } entry[CACHE_ENTRIES]; // those behind the last one are nobody's, and true
    u8 *host;               // of the page, NULL: not RAM
    u64 seen; // vcpu_ctx.mode when it was that of RIP's page, with linear addresses as RIP has them
    gpa_t gpa; // of the page
    u32 entries;
};

// What 15 bytes are in 64-bit code.
struct decoded {
    u64 head, tail; // the first eight and, with one of those again, the last eight
    struct insn insn;
};

struct insn_cache {
    struct translation data[CACHE_SLOTS], code[CACHE_SLOTS];
    struct decoded decoded[DECODED_SLOTS];
};

int insn_cache_create(struct vcpu *vcpu)
{
    vcpu->insn_cache = heap_alloc(sizeof(*vcpu->insn_cache));
    if (!vcpu->insn_cache)
        return -E_NOMEM;
    for (u32 i = 0; i < CACHE_SLOTS; i++)
        vcpu->insn_cache->code[i].seen = UNSEEN;
    return 0;
}

void insn_cache_destroy(struct vcpu *vcpu)
{
    if (vcpu->insn_cache)
        heap_free(vcpu->insn_cache, sizeof(*vcpu->insn_cache));
}

// --- guest-physical ---

int guest_read_gpa(struct vcpu *vcpu, gpa_t gpa, void *buf, u64 size)
{
    const void *from = vm_ram_ptr(vcpu->vm, gpa, size);

    if (!from)
        return -E_FAULT;
    memcpy(buf, from, size);
    return 0;
}

int guest_write_gpa(struct vcpu *vcpu, gpa_t gpa, const void *buf, u64 size)
{
    void *to = vm_ram_ptr(vcpu->vm, gpa, size);

    if (!to)
        return -E_FAULT;
    memcpy(to, buf, size);
    return 0;
}

// --- the walk ---

struct walk_context {
    struct vcpu *vcpu;
    gva_t la;
    struct translation *record; // entries read so far; NULL when the walk is not to be remembered
};

// A paging-structure entry, NULL if it is not in RAM: an L2's is found through L1's stage 2.
static void *entry_at(const struct walk_context *ctx, gpa_t gpa, unsigned size, u32 access)
{
    if (unlikely(ctx->vcpu->level) && nested_translate(ctx->vcpu, &gpa, ctx->la, access | L1_TABLE))
        return NULL;
    return vm_ram_ptr(ctx->vcpu->vm, gpa, size);
}

static int walk_read(void *context, gpa_t gpa, void *value, unsigned size)
{
    struct walk_context *ctx = context;
    const void *from = entry_at(ctx, gpa, size, L1_READ);
    struct translation *record = ctx->record;

    if (!from)
        return -E_FAULT;
    if (size == 4) {
        *(u32 *)value = __atomic_load_n((const u32 *)from, __ATOMIC_RELAXED);
        record->entries = CACHE_ENTRIES + 1; // only tables of 8-byte entries are remembered
        return 0;
    }
    *(u64 *)value = __atomic_load_n((const u64 *)from, __ATOMIC_RELAXED);
    if (record->entries < CACHE_ENTRIES) {
        record->entry[record->entries].at = from;
        record->entry[record->entries].value = *(u64 *)value;
    }
    record->entries++;
    return 0;
}

static int walk_cmpxchg(void *context, gpa_t gpa, u64 old, u64 new_value, unsigned size)
{
    struct walk_context *ctx = context;
    void *at = entry_at(ctx, gpa, size, L1_READ | L1_WRITE);
    u32 old32 = (u32)old;
    bool done;

    if (!at)
        return -E_FAULT;
    ctx->record->entries =
        CACHE_ENTRIES + 1; // changed under the record: the next walk will be remembered
    if (size == 4)
        done = __atomic_compare_exchange_n((u32 *)at, &old32, (u32)new_value, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    else
        done = __atomic_compare_exchange_n((u64 *)at, &old, new_value, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
    return done ? 0 : -E_AGAIN;
}

static void fill_paging_state(struct vcpu *vcpu, struct paging_state *ps)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_EFER_PAT);

    *ps = (struct paging_state){
        .cr0 = s->cr0,
        .cr3 = s->cr3,
        .cr4 = s->cr4,
        .efer = s->efer,
        .rflags = s->rflags,
        .pdpte_from_memory = !backend->holds_pdptes,
        .phys_bits = cpuid_phys_bits(vcpu->vm),
        .nx = cpuid_has(vcpu->vm, 0x80000001, 3, 20),
        .page1g = cpuid_has(vcpu->vm, 0x80000001, 3, 26),
        .pkru = s->cr4 & CR4_PKE ? rdpkru() : 0,
        .pkrs = (u32)vcpu->pkrs,
    };
    if (!ps->pdpte_from_memory && (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !(s->efer & EFER_LMA))
        memcpy(ps->pdpte, vcpu_state(vcpu, GROUP_PDPTE)->pdpte, sizeof(ps->pdpte));
}

// --- the cache ---

enum { TAG_VALID = BIT(0), TAG_IMPLICIT = BIT(7), TAG_AC = BIT(3), TAG_BITS = BITS(7, 0) };
_Static_assert(!((WALK_WRITE | WALK_USER | WALK_FETCH | WALK_SHADOW_STACK) &
                 (TAG_VALID | TAG_IMPLICIT | TAG_AC)),
               "the bits of an access have their places in a tag");

// A page and a kind of access to it.
static inline u64 tag_of(const struct guest_state *s, gva_t la, u32 access)
{
    u64 tag = (la & PAGE_MASK) | (access & TAG_BITS) | TAG_VALID;

    if (access & WALK_IMPLICIT)
        tag |= TAG_IMPLICIT;
    if (!(access & WALK_FETCH) && (s->rflags & RFLAGS_AC))
        tag |= TAG_AC;
    return tag;
}

static inline struct translation *slot_of(struct vcpu *vcpu, gva_t la, u32 access)
{
    u64 page = la >> PAGE_SHIFT;

    if (access & WALK_FETCH)
        return &vcpu->insn_cache->code[page % CACHE_SLOTS];
    return &vcpu->insn_cache->data[(page ^ (access & WALK_WRITE)) % CACHE_SLOTS];
}

// With the rights of PKRU in the upper half.
static inline u64 paging_mode(const struct guest_state *s)
{
    u64 pkru = unlikely(s->cr4 & CR4_PKE) ? (u64)rdpkru() << 32 : 0;

    return pkru | (s->cr0 & CR0_TRANSLATION) | (s->cr4 & CR4_TRANSLATION) |
           (s->efer & EFER_TRANSLATION);
}

static inline u64 changed(const struct translation *t, unsigned i)
{
    return __atomic_load_n(t->entry[i].at, __ATOMIC_RELAXED) ^ t->entry[i].value;
}

static inline bool still_true(const struct translation *t)
{
    if (unlikely(t->entries > 4) && changed(t, 4))
        return false;
    return !(changed(t, 0) | changed(t, 1) | changed(t, 2) | changed(t, 3));
}

// What the cache knows of the page of `la`, NULL if nothing that is still true.
static ALWAYS_INLINE struct translation *cached(struct vcpu *vcpu, const struct guest_state *s,
                                                gva_t la, u32 access)
{
    struct translation *t = slot_of(vcpu, la, access);

    KEEP_ADDRESS(t);
    if (likely(t->tag == tag_of(s, la, access) && t->cr3 == s->cr3 && t->mode == paging_mode(s) &&
               t->world == vcpu->world && still_true(t)))
        return t;
    return NULL;
}

// Whether all that the walk has read is in the record: not the PDPTEs that a CPU holds, and PKRS.
static bool is_whole(const struct paging_state *ps, const struct translation *t)
{
    bool held = !ps->pdpte_from_memory && (ps->cr0 & CR0_PG) && (ps->cr4 & CR4_PAE) &&
                !(ps->efer & EFER_LMA);

    return t->entries <= CACHE_ENTRIES && !held && !(ps->cr4 & CR4_PKS);
}

static void remember(struct translation *t, const struct guest_state *s, u64 world, u64 tag)
{
    static const u64 nothing;

    for (u32 i = t->entries; i < CACHE_ENTRIES; i++) {
        t->entry[i].at = &nothing;
        t->entry[i].value = 0;
    }
    t->cr3 = s->cr3;
    t->mode = paging_mode(s);
    t->world = world;
    t->tag = tag;
}

static u32 final_access(u32 walk)
{
    return walk & WALK_FETCH ? L1_EXECUTE : walk & WALK_WRITE ? L1_WRITE : L1_READ;
}

// The page of `la` for `access` (WALK_*): 0 with its translation in *out, or guest_walk's error.
static int translate(struct vcpu *vcpu, gva_t la, u32 access, const struct translation **out,
                     struct walk_fault *fault)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_EFER_PAT);
    struct translation *t = cached(vcpu, s, la, access);
    struct walk_context context = {vcpu, la, slot_of(vcpu, la, access)};
    const struct walk_memory memory = {walk_read, walk_cmpxchg, &context};
    struct paging_state ps;
    struct walk_result result;
    int error;

    *out = t;
    if (likely(t != NULL))
        return 0;
    *out = t = context.record;
    t->tag = 0;
    t->seen = UNSEEN;
    t->entries = 0;
    fill_paging_state(vcpu, &ps);
    error = guest_walk(&ps, &memory, la & PAGE_MASK, access, &result, fault);
    if (error)
        return error;
    t->gpa = result.gpa;
    if (unlikely(vcpu->level)) {
        t->gpa |= la & ~PAGE_MASK;
        error = nested_translate(vcpu, &t->gpa, la, final_access(access));
        t->gpa &= PAGE_MASK;
        fault->stage2 = error == -E_FAULT;
        if (error)
            return error;
    }
    t->host = vm_ram_ptr(vcpu->vm, t->gpa, PAGE_SIZE);
    if (is_whole(&ps, t))
        remember(t, s, vcpu->world, tag_of(s, la, access));
    return 0;
}

int guest_translate(struct vcpu *vcpu, gva_t la, u32 access, gpa_t *gpa, u8 **host,
                    struct walk_fault *fault)
{
    const struct translation *t;
    int error = translate(vcpu, la, access, &t, fault);

    if (unlikely(error))
        return error;
    *gpa = t->gpa | (la & ~PAGE_MASK);
    *host = t->host ? t->host + (la & ~PAGE_MASK) : NULL;
    return 0;
}

bool guest_device_known(struct vcpu *vcpu, gva_t la, u32 access, gpa_t *gpa)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_EFER_PAT);
    const struct translation *t = cached(vcpu, s, la, access);

    if (!t || t->host)
        return false;
    *gpa = t->gpa | (la & ~PAGE_MASK);
    return true;
}

// --- linear accesses ---

typedef void (*copy_fn)(u8 *ram, u8 *buf, unsigned size);

static void copy_out(u8 *ram, u8 *buf, unsigned size)
{
    memcpy(buf, ram, size);
}

static void copy_in(u8 *ram, u8 *buf, unsigned size)
{
    memcpy(ram, buf, size);
}

// What a failed walk gives the guest: its #PF; nothing (-E_AGAIN: it executes the instruction
// again); or its end.
static void walk_failed(struct vcpu *vcpu, gva_t la, int error, const struct walk_fault *fault)
{
    if (error == -E_AGAIN)
        return;
    if (fault->stage2 && nested_tell_refused(vcpu))
        return;
    if (fault->stage2 && !vcpu_shutdown_l2(vcpu))
        vm_stop(vcpu->vm, vcpu, "paging structure where there is no RAM, GPA %#llx",
                (unsigned long long)fault->table_gpa);
    if (!fault->stage2)
        vcpu_inject_page_fault(vcpu, fault->error_code, la);
}

static int access_linear(struct vcpu *vcpu, gva_t la, u8 *buf, unsigned size, u32 access,
                         copy_fn copy)
{
    struct walk_fault fault = {0};
    gpa_t gpa;
    u8 *host;

    while (size) {
        unsigned piece = (unsigned)MIN((u64)size, PAGE_SIZE - (la & ~PAGE_MASK));
        int error = guest_translate(vcpu, la, access, &gpa, &host, &fault);

        if (error) {
            walk_failed(vcpu, la, error, &fault);
            return -E_FAULT;
        }
        if (!host) {
            if (!vcpu_shutdown_l2(vcpu))
                vm_stop(vcpu->vm, vcpu, "operand where there is no RAM, GPA %#llx",
                        (unsigned long long)gpa);
            return -E_FAULT;
        }
        copy(host, buf, piece);
        la += piece;
        buf += piece;
        size -= piece;
    }
    return 0;
}

int guest_read_linear(struct vcpu *vcpu, gva_t la, void *buf, unsigned size, u32 access)
{
    return access_linear(vcpu, la, buf, size, access | (vcpu_cpl(vcpu) == 3 ? WALK_USER : 0),
                         copy_out);
}

int guest_write_linear(struct vcpu *vcpu, gva_t la, const void *buf, unsigned size, u32 access)
{
    u8 copy[64];

    if (size > sizeof(copy))
        return -E_INVAL;
    memcpy(copy, buf, size);
    return access_linear(vcpu, la, copy, size,
                         access | WALK_WRITE | (vcpu_cpl(vcpu) == 3 ? WALK_USER : 0), copy_in);
}

// --- instructions ---

#define FETCH_GROUPS (GROUP_RIP | GROUP_CR | GROUP_CODE | GROUP_EFER_PAT)

static inline u64 linear_rip(const struct guest_state *s)
{
    return state_is_64bit(s) ? s->rip : (u32)(s->seg[SEG_CS].base + s->rip);
}

static inline u32 fetch_access(const struct guest_state *s)
{
    return WALK_FETCH | (state_cpl(s) == 3 ? (u32)WALK_USER : 0);
}

static enum insn_mode decode_mode(struct vcpu *vcpu)
{
    unsigned size = vcpu_code_size(vcpu);

    return size == 8 ? INSN_MODE_64 : size == 4 ? INSN_MODE_32 : INSN_MODE_16;
}

// What there is of the 15 bytes at RIP; *error tells why not all.
static unsigned fetch(struct vcpu *vcpu, u8 buf[15], int *error, struct walk_fault *fault)
{
    const struct guest_state *s = vcpu_state(vcpu, FETCH_GROUPS);
    u32 access = fetch_access(s);
    u64 la = linear_rip(s);
    unsigned n = 0;

    for (*error = 0; n < 15;) {
        unsigned piece = (unsigned)MIN(15u - n, PAGE_SIZE - ((la + n) & ~PAGE_MASK));
        gpa_t gpa;
        u8 *host;

        *error = guest_translate(vcpu, la + n, access, &gpa, &host, fault);
        if (*error || !host)
            break;
        memcpy(buf + n, host, piece);
        n += piece;
    }
    return n;
}

int insn_peek(struct vcpu *vcpu, u8 buf[15])
{
    struct walk_fault fault;
    int error;

    return (int)fetch(vcpu, buf, &error, &fault);
}

// The CPU has executed what is there a moment ago, so if it cannot be read, another vCPU has
// changed the tables.
int insn_fetch(struct vcpu *vcpu, u8 buf[15])
{
    struct walk_fault fault = {0};
    struct insn insn;
    int error;
    unsigned n = fetch(vcpu, buf, &error, &fault);

    if (n == 15 || (n && insn_decode(&insn, buf, n, decode_mode(vcpu)) != INSN_TRUNCATED))
        return (int)n;
    if (error)
        walk_failed(vcpu, linear_rip(vcpu_state(vcpu, FETCH_GROUPS)) + n, error, &fault);
    else if (vcpu->level)
        vcpu_inject_ud(vcpu); // as on_stage2 does
    else
        vm_stop(vcpu->vm, vcpu, "instruction where there is no RAM");
    return -E_FAULT;
}

// The code at RIP, if the cache knows its page and `size` bytes lie in it; NULL if not.
static ALWAYS_INLINE const u8 *known_code(struct vcpu *vcpu, const struct guest_state *s, u64 size)
{
    u64 la = linear_rip(s), offset = la & ~PAGE_MASK;
    const struct translation *t = cached(vcpu, s, la, fetch_access(s));

    return likely(t && t->host && offset <= PAGE_SIZE - size) ? t->host + offset : NULL;
}

bool insn_first_word(struct vcpu *vcpu, u32 *word)
{
    const u8 *code = known_code(vcpu, vcpu_state(vcpu, FETCH_GROUPS), sizeof(*word));

    if (code)
        memcpy(word, code, sizeof(*word));
    return code;
}

const struct insn *insn_known(struct vcpu *vcpu, const struct vm_exit *exit)
{
    const struct guest_state *s = vcpu_state(vcpu, FETCH_GROUPS);
    struct decoded *d = &vcpu->insn_cache->decoded[(s->rip ^ s->rip >> 4) % DECODED_SLOTS];
    const u8 *code = exit->bytes;
    u8 bytes[INSN_MAX_LENGTH];
    u64 head, tail;

    if (!state_is_64bit(s))
        return NULL;
    if (exit->bytes_count < INSN_MAX_LENGTH)
        code = known_code(vcpu, s, INSN_MAX_LENGTH);
    if (unlikely(!code))
        return NULL;
    memcpy(&head, code, sizeof(head));
    memcpy(&tail, code + 7, sizeof(tail));
    if (likely(d->head == head && d->tail == tail && d->insn.length))
        return &d->insn;
    d->head = head;
    d->tail = tail;
    memcpy(bytes, &head, sizeof(head));
    memcpy(bytes + 7, &tail, sizeof(tail));
    if (insn_decode(&d->insn, bytes, sizeof(bytes), INSN_MODE_64) == INSN_OK)
        return &d->insn;
    d->insn.length = 0;
    return NULL;
}

// What an exit of this kind was made by: its usual bytes without prefixes, the first one lowest
// (mask 0: there are none), and the decoder's names for it.
struct exit_opcode {
    u32 bytes, mask;
    u8 length;
    u8 op[2];
};

#define BYTES_0          1, 0, 0 // which no word is under this mask
#define BYTES_1(a)       a, 0xff, 1
#define BYTES_2(a, b)    (b) << 8 | (a), 0xffff, 2
#define BYTES_3(a, b, c) (c) << 16 | (b) << 8 | (a), 0xffffff, 3

static const struct exit_opcode exit_opcodes[EXIT_KIND_COUNT] = {
    [EXIT_CPUID] = {BYTES_2(0x0f, 0xa2), {INSN_CPUID}},
    [EXIT_HLT] = {BYTES_1(0xf4), {INSN_HLT}},
    [EXIT_RDMSR] = {BYTES_2(0x0f, 0x32), {INSN_RDMSR}},
    [EXIT_WRMSR] = {BYTES_2(0x0f, 0x30), {INSN_WRMSR}},
    [EXIT_INVD] = {BYTES_2(0x0f, 0x08), {INSN_INVD}},
    [EXIT_WBINVD] = {BYTES_2(0x0f, 0x09), {INSN_WBINVD, INSN_INVD}}, // QEMU's INVD too
    [EXIT_INVLPG] = {BYTES_0, {INSN_INVLPG}},
    [EXIT_INVPCID] = {BYTES_0, {INSN_INVPCID}},
    [EXIT_RDTSC] = {BYTES_2(0x0f, 0x31), {INSN_RDTSC, INSN_RDTSCP}},
    [EXIT_RDTSCP] = {BYTES_3(0x0f, 0x01, 0xf9), {INSN_RDTSCP}},
    [EXIT_RDPMC] = {BYTES_2(0x0f, 0x33), {INSN_RDPMC}},
    [EXIT_RDPRU] = {BYTES_3(0x0f, 0x01, 0xfd), {INSN_OTHER}},
    [EXIT_PAUSE] = {BYTES_2(0xf3, 0x90), {INSN_PAUSE}},
    [EXIT_ICEBP] = {BYTES_1(0xf1), {INSN_INT1}},
    [EXIT_MONITOR] = {BYTES_3(0x0f, 0x01, 0xc8), {INSN_MONITOR}},
    [EXIT_MWAIT] = {BYTES_3(0x0f, 0x01, 0xc9), {INSN_MWAIT}},
    [EXIT_XSETBV] = {BYTES_3(0x0f, 0x01, 0xd1), {INSN_XSETBV}},
    [EXIT_VMCALL] = {BYTES_3(0x0f, 0x01, 0xc1), {INSN_VMCALL}},
    [EXIT_VMMCALL] = {BYTES_3(0x0f, 0x01, 0xd9), {INSN_VMMCALL}},
    [EXIT_VMRUN] = {BYTES_3(0x0f, 0x01, 0xd8), {INSN_VMRUN}},
    [EXIT_VMLOAD] = {BYTES_3(0x0f, 0x01, 0xda), {INSN_VMLOAD}},
    [EXIT_VMSAVE] = {BYTES_3(0x0f, 0x01, 0xdb), {INSN_VMSAVE}},
    [EXIT_STGI] = {BYTES_3(0x0f, 0x01, 0xdc), {INSN_STGI}},
    [EXIT_CLGI] = {BYTES_3(0x0f, 0x01, 0xdd), {INSN_CLGI}},
    [EXIT_SKINIT] = {BYTES_3(0x0f, 0x01, 0xde), {INSN_SKINIT}},
    [EXIT_INVLPGA] = {BYTES_3(0x0f, 0x01, 0xdf), {INSN_INVLPGA}},
};

bool insn_decode_current(struct vcpu *vcpu, struct insn *insn)
{
    u8 bytes[15];
    int n = insn_fetch(vcpu, bytes);

    return n > 0 && insn_decode(insn, bytes, (unsigned)n, decode_mode(vcpu)) == INSN_OK;
}

bool insn_peek_current(struct vcpu *vcpu, struct insn *insn)
{
    u8 bytes[15];
    int n = insn_peek(vcpu, bytes);

    return n > 0 && insn_decode(insn, bytes, (unsigned)n, decode_mode(vcpu)) == INSN_OK;
}

void insn_name_interrupted(struct vcpu *vcpu, struct event *event)
{
    bool software = event->type == EVENT_SOFT_INTERRUPT || event->type == EVENT_SOFT_EXCEPTION;
    struct insn insn;

    if (!software || event->insn_len || event->rip_is_next || !insn_peek_current(vcpu, &insn))
        return;
    if (insn.op == INSN_INT3 || insn.op == INSN_INTO)
        event->type = EVENT_SOFT_EXCEPTION; // QEMU does not tell them from INT n
    else if (insn.op != INSN_INT)
        return;
    event->insn_len = insn.length;
}

void insn_exit_operand(const struct insn *insn, u64 next_rip, struct exit_operand *op)
{
    bool relative = insn->has_mem && insn->base == INSN_REG_RIP;

    *op = (struct exit_operand){
        .known = true,
        .is_reg = !insn->has_mem,
        .seg = insn->seg,
        .base = relative ? EXIT_GPR_UNKNOWN : insn->base, // INSN_REG_NONE is the same
        .index = insn->index,
        .scale = (u8)__builtin_ctz(insn->scale | 8),
        .addr_size = insn->addr_size,
        .op_size = insn->opsize,
        .reg1 = insn->rm,
        .reg2 = insn->reg,
        .displacement = insn->disp + (relative ? (s64)next_rip : 0),
    };
}

static bool op_expected(const struct exit_opcode *expected, u8 op)
{
    for (unsigned i = 0; i < ARRAY_SIZE(expected->op); i++)
        if (expected->op[i] && expected->op[i] == op)
            return true;
    return false;
}

// An L1 may have given its L2's code another page and owe the flush, and a guest may change code
// that another of its vCPUs executes: neither may end it. What is there now is executed instead.
// Only an instruction that Nestor misreads exits like that again and again.
bool insn_retry(struct vcpu *vcpu)
{
    vcpu->retries = vcpu->exits == vcpu->retry_exit + 1 ? vcpu->retries + 1 : 1;
    vcpu->retry_exit = vcpu->exits;
    if (vcpu->retries > RETRIES)
        return false;
    if (vcpu->level)
        nested_stage2_drop(vcpu);
    tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST | (vcpu->level ? TLB_FLUSH_STAGE2 : 0));
    return true;
}

static unsigned exit_length(struct vcpu *vcpu, const struct vm_exit *exit)
{
    const struct exit_opcode *expected = &exit_opcodes[exit->kind];
    struct insn insn;
    u8 bytes[15];
    int n = insn_fetch(vcpu, bytes), status;

    if (n <= 0)
        return 0;
    status = insn_decode(&insn, bytes, (unsigned)n, decode_mode(vcpu));
    if (status == INSN_OK && op_expected(expected, insn.op))
        return insn.length;
    // An emulator may exit before it looks at LOCK and length (QEMU 7.2 does): the fault is the
    // CPU's to give.
    if (status == INSN_INVALID)
        vcpu_inject_ud(vcpu);
    else if (status == INSN_TOO_LONG)
        vcpu_inject_gp0(vcpu);
    else if (!insn_retry(vcpu) && !vcpu_shutdown_l2(vcpu))
        vm_stop(vcpu->vm, vcpu, "exit %s by an instruction that is none such",
                exit_kind_names[exit->kind]);
    return 0;
}

static inline bool has_usual_bytes(const u8 *code, const struct exit_opcode *expected)
{
    u32 word;

    memcpy(&word, code, sizeof(word));
    return (word & expected->mask) == expected->bytes;
}

// The same page as known_code finds, by fewer comparisons: the mode's number stands for all that
// its tag, CR3 and mode do.
static inline const u8 *seen_code(const struct vcpu *vcpu, const struct vcpu_ctx *ctx, u64 size)
{
    u64 rip = ctx->state.rip, offset = rip & ~PAGE_MASK;
    const struct translation *t = &vcpu->insn_cache->code[(rip >> PAGE_SHIFT) % CACHE_SLOTS];

    KEEP_ADDRESS(t);
    if (likely(t->seen == ctx->mode && !((t->tag ^ rip) >> PAGE_SHIFT) && t->world == vcpu->world &&
               offset <= PAGE_SIZE - size && still_true(t)))
        return t->host + offset;
    return NULL;
}

static __attribute__((noinline)) bool find_length_fully(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct exit_opcode *expected = &exit_opcodes[exit->kind];
    const struct guest_state *s = vcpu_state(vcpu, FETCH_GROUPS);
    const u8 *code = known_code(vcpu, s, sizeof(u32));

    if (code && linear_rip(s) == s->rip)
        slot_of(vcpu, s->rip, WALK_FETCH)->seen = vcpu->cur->mode ? vcpu->cur->mode : UNSEEN;
    if (code && has_usual_bytes(code, expected))
        exit->insn_len = expected->length;
    else
        exit->insn_len = (u8)exit_length(vcpu, exit);
    return exit->insn_len;
}

bool insn_find_length(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct exit_opcode *expected = &exit_opcodes[exit->kind];
    const struct vcpu_ctx *ctx = vcpu->cur;
    const u8 *code;

    if (!expected->op[0])
        return true; // no instruction, or one that its handler decodes wholly
    // The usual one needs no more than this; a call would have it save registers.
    code = likely(ctx->valid & GROUP_CR) ? seen_code(vcpu, ctx, sizeof(u32)) : NULL;
    if (unlikely(!code || !has_usual_bytes(code, expected)))
        return find_length_fully(vcpu, exit);
    exit->insn_len = expected->length;
    return true;
}
