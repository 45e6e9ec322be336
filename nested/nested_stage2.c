// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Nested stage 2: what L2's guest-physical addresses are, by L1's tables and then Nestor's own, in
// shadow tables that a fault fills and that hold no more than a TLB may: SDM vol. 3 "Caching
// Translation Information" and "Invalidation", APM vol. 2 "TLB Management". A shadow belongs to one
// EPTP, or to one ASID with its nCR3, and survives L1's turns. Nestor's own emulation asks through
// nested_translate() and remembers answers in `known`, under the same rules.
//
// The memory type is Nestor's own: RAM is cached whatever L1's entry says, as for L1 itself.

#include "nested_stage2.h"
#include "nested.h"
#include <arch/x86/regs.h>
#include <arch/x86/svm.h>
#include <arch/x86/vmx.h>
#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/tlb.h>

enum { SHADOWS = 8, KNOWN = 64, POOL_SPARE = 64 };
#define NONE_DIVERTED (~0ull)

struct shadow {
    struct stage2 tables;
    bool used;
    bool stale; // the CPU's TLB may know what the tables no longer say: flush before the next use
    u64 root, mode;
    u32 tag;
    u64 last_use;
};

struct known {
    u64 page; // of L2's, with bit 0 set; 0: none
    gpa_t gpa;
    u32 rights;
};

struct nested_stage2 {
    struct l1_stage2 l1;    // of the L2 that runs, or ran last
    struct l1_log log;      // index NULL: none
    struct shadow *current; // its tables; NULL: it uses Nestor's own as L1 does
    u32 tag;                // of L2's translations in the CPU; 0: they serve no further entry
    u64 uses;
    u64 world; // counts what is forgotten, from 1 on
    struct stage2_pool pool;
    struct shadow shadows[SHADOWS];
    struct known known[KNOWN];
    gpa_t diverted, diverted_to; // NONE_DIVERTED: no page of L1's
    // What L1's tables lacked at the last exit to it, and in which shadow; NULL: nothing.
    struct shadow *wanted_in;
    gpa_t wanted;
    u32 wanted_access;
    bool refused; // by the last nested_translate(): `exit` and `fault` say what L1 is to be told
    struct vm_exit exit;
    struct l1_fault fault;
};

int nested_stage2_create(struct vcpu *vcpu)
{
    const struct vm *vm = vcpu->vm;
    struct nested_stage2 *ns = heap_alloc(sizeof(*ns));
    int error = ns ? 0 : -E_NOMEM;

    vcpu->nested_stage2 = ns;
    if (ns)
        ns->world = 1;
    if (ns)
        ns->diverted = NONE_DIVERTED;
    for (unsigned i = 0; i < SHADOWS && !error; i++)
        error = stage2_create(&ns->shadows[i].tables, backend->stage2_format, vm->stage2.levels,
                              vm->stage2.has_1g);
    // As many as tables of 4 KiB pages for all of the RAM need, and some more.
    return error ? error
                 : stage2_pool_create(&ns->pool, (u32)(vm->ram_size / SIZE_2M) + POOL_SPARE);
}

void nested_stage2_destroy(struct vcpu *vcpu)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    if (!ns)
        return;
    for (unsigned i = 0; i < SHADOWS; i++)
        if (ns->shadows[i].tables.root) {
            stage2_clear(&ns->shadows[i].tables, &ns->pool);
            stage2_destroy(&ns->shadows[i].tables);
        }
    stage2_pool_destroy(&ns->pool);
    heap_free(ns, sizeof(*ns));
    vcpu->nested_stage2 = NULL;
}

// --- dropping ---

static void flush_l2(struct vcpu *vcpu, unsigned kinds)
{
    vcpu->ctx[1].flush |= kinds;
}

// Nothing that Nestor remembers of L2's addresses, here or in core/insn.c, holds any longer.
static void forget(struct vcpu *vcpu)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    memset(ns->known, 0, sizeof(ns->known));
    ns->world++;
    if (vcpu->level)
        vcpu->world = ns->world;
}

u64 nested_stage2_world(const struct vcpu *vcpu)
{
    return vcpu->nested_stage2->world;
}

static void shadow_drop(struct vcpu *vcpu, struct shadow *shadow)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    stage2_clear(&shadow->tables, &ns->pool);
    shadow->stale = true;
    if (shadow != ns->current)
        return;
    flush_l2(vcpu, TLB_FLUSH_STAGE2);
    forget(vcpu);
}

void nested_stage2_drop(struct vcpu *vcpu)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    for (unsigned i = 0; ns && i < SHADOWS; i++)
        shadow_drop(vcpu, &ns->shadows[i]);
}

void nested_invept(struct vcpu *vcpu, bool all, u64 eptp)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    for (unsigned i = 0; i < SHADOWS; i++)
        if (all || !((ns->shadows[i].root ^ eptp) & BITS(51, 12)))
            shadow_drop(vcpu, &ns->shadows[i]);
}

void nested_invalidate_tag(struct vcpu *vcpu, bool all, u32 tag)
{
    if (all || tag == vcpu->nested_stage2->tag) // another tag's entry flushes anyway
        flush_l2(vcpu, TLB_FLUSH_GUEST);
    if (!all && !tag)
        vcpu->ctx[0].flush |= TLB_FLUSH_GUEST;
}

void nested_tlb_control(struct vcpu *vcpu, u32 asid, u32 tlb_control)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    bool all = tlb_control == SVM_TLB_FLUSH_ALL;

    if (tlb_control == SVM_TLB_NOTHING)
        return;
    for (unsigned i = 0; i < SHADOWS; i++)
        if (all || ns->shadows[i].tag == asid)
            shadow_drop(vcpu, &ns->shadows[i]);
    nested_invalidate_tag(vcpu, all, asid);
    if (all)
        vcpu->ctx[0].flush |= TLB_FLUSH_GUEST;
}

// --- choosing ---

void nested_tag_use(struct vcpu *vcpu, u32 tag)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    if (!tag || tag != ns->tag)
        flush_l2(vcpu, TLB_FLUSH_GUEST);
    ns->tag = tag;
}

static bool belongs(const struct shadow *shadow, const struct l1_stage2 *l1, u32 tag)
{
    return shadow->used && shadow->root == l1->root && shadow->mode == l1->mode &&
           shadow->tag == tag;
}

static struct shadow *oldest(struct nested_stage2 *ns, const struct shadow *but)
{
    struct shadow *found = NULL;

    for (unsigned i = 0; i < SHADOWS; i++) {
        struct shadow *shadow = &ns->shadows[i];

        if (shadow != but && (!found || shadow->last_use < found->last_use))
            found = shadow;
    }
    return found;
}

static struct shadow *shadow_for(struct vcpu *vcpu, const struct l1_stage2 *l1, u32 tag)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    struct shadow *shadow = ns->current;

    if (likely(shadow && belongs(shadow, l1, tag)))
        return shadow;
    for (unsigned i = 0; i < SHADOWS; i++)
        if (belongs(&ns->shadows[i], l1, tag))
            return &ns->shadows[i];
    shadow = oldest(ns, NULL);
    shadow_drop(vcpu, shadow);
    shadow->root = l1->root;
    shadow->mode = l1->mode;
    shadow->tag = tag;
    shadow->used = true;
    return shadow;
}

void nested_stage2_divert(struct vcpu *vcpu, bool on, gpa_t page, gpa_t to)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    gpa_t diverted = on ? page : NONE_DIVERTED;

    if (ns->diverted == diverted && (!on || ns->diverted_to == to))
        return;
    ns->diverted = diverted;
    ns->diverted_to = to;
    nested_stage2_drop(vcpu);
}

// What every entry begins with; `shadow`: ns->current.
static inline void begin(struct vcpu *vcpu, struct nested_stage2 *ns, struct shadow *shadow)
{
    ns->refused = false; // by a look at an instruction that exited anyway
    if (!shadow)
        return;
    // A D flag that L1 clears is seen again without INVEPT if only combined mappings had it, and an
    // entry without VPID drops those (SDM vol. 3 "Operations that Invalidate Cached Mappings").
    if (unlikely(ns->log.index) && !ns->tag)
        shadow_drop(vcpu, shadow);
    if (unlikely(shadow->stale)) {
        flush_l2(vcpu, TLB_FLUSH_STAGE2);
        shadow->stale = false;
    }
}

void nested_stage2_use(struct vcpu *vcpu, const struct l1_stage2 *l1, const struct l1_log *log)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    struct controls *ctl = &vcpu->ctx[1].ctl;
    struct shadow *shadow = NULL;
    const struct stage2 *tables = &vcpu->vm->stage2;
    bool ad;

    // EPT's mappings have no tag but the EPTP.
    if (l1->kind != L1_STAGE2_NONE || ns->diverted != NONE_DIVERTED) {
        shadow = shadow_for(vcpu, l1, l1->kind == L1_STAGE2_NPT ? ns->tag : 0);
        shadow->last_use = ++ns->uses;
        tables = &shadow->tables;
    }
    if (shadow != ns->current)
        forget(vcpu);
    ns->current = shadow;
    ns->l1 = *l1;
    ns->log = log ? *log : (struct l1_log){0, NULL};
    ad = l1->kind == L1_STAGE2_EPT && (l1->root & EPTP_AD);
    if (ctl->stage2_root != tables->root || ctl->stage2_levels != tables->levels ||
        ctl->stage2_ad != ad)
        vcpu->ctx[1].ctl_dirty |= CTL_STAGE2;
    ctl->stage2_root = tables->root;
    ctl->stage2_levels = tables->levels;
    ctl->stage2_ad = ad;
    begin(vcpu, ns, shadow);
}

void nested_stage2_again(struct vcpu *vcpu)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    nested_tag_use(vcpu, ns->tag);
    begin(vcpu, ns, ns->current);
}

// --- L1's tables ---

static int table_read(void *ctx, gpa_t gpa, void *value, unsigned size)
{
    const struct vm *vm = ctx;
    const void *from = vm_ram_ptr(vm, gpa, size);

    if (unlikely(!from))
        memset(value, 0xff, size);
    else if (likely(size == sizeof(u64)))
        *(u64 *)value = __atomic_load_n((const u64 *)from, __ATOMIC_RELAXED);
    else
        *(u32 *)value = __atomic_load_n((const u32 *)from, __ATOMIC_RELAXED);
    return 0;
}

#define CMPXCHG(type, at, old, new_value)                                                     \
    __atomic_compare_exchange_n((type *)(at), &(type){(type)(old)}, (type)(new_value), false, \
                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

static int table_cmpxchg(void *ctx, gpa_t gpa, u64 old, u64 new_value, unsigned size)
{
    void *at = vm_ram_ptr(ctx, gpa, size);
    bool done;

    if (!at)
        return 0; // a write that goes nowhere
    done =
        size == sizeof(u32) ? CMPXCHG(u32, at, old, new_value) : CMPXCHG(u64, at, old, new_value);
    return done ? 0 : -E_AGAIN;
}

enum { LOG_ENTRIES = 512 };

static void log_page(struct vcpu *vcpu, const struct l1_log *log, gpa_t gpa)
{
    u64 page = gpa & PAGE_MASK;

    guest_write_gpa(vcpu, log->address + *log->index * sizeof(page), &page, sizeof(page));
    *log->index = (u16)(*log->index - 1);
}

static int walk(struct vcpu *vcpu, gpa_t gpa, u32 access, struct l1_translation *out,
                struct l1_fault *fault)
{
    const struct walk_memory memory = {table_read, table_cmpxchg, vcpu->vm};
    struct nested_stage2 *ns = vcpu->nested_stage2;
    int error;

    ns->l1.log_full = ns->log.index && *ns->log.index >= LOG_ENTRIES;
    error = l1_stage2_walk(&ns->l1, &memory, gpa, access, out, fault);
    if (!error && out->dirtied && ns->log.index)
        log_page(vcpu, &ns->log, gpa);
    return error;
}

// --- filling ---

// A table is wanted and the pool is at its limit: another shadow gives its own, or this one begins
// anew.
static int fill_at_limit(struct vcpu *vcpu, gpa_t gpa, hpa_t hpa, u64 size, unsigned rights,
                         enum mem_type type)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    int result = -E_NOMEM;

    for (unsigned i = 0; i < SHADOWS && result == -E_NOMEM; i++) {
        struct shadow *shadow = i < SHADOWS - 1 ? oldest(ns, ns->current) : ns->current;

        shadow->last_use = ns->uses;
        shadow_drop(vcpu, shadow);
        result = stage2_fill(&ns->current->tables, &ns->pool, gpa, hpa, size, rights, type);
    }
    return result;
}

// The largest page that fits both tables' and does not hold the page that is diverted.
static u64 fill_size(const struct nested_stage2 *ns, const struct l1_translation *l1, u64 own_size)
{
    u64 size = MIN(l1->page_size, own_size);

    size = size >= SIZE_1G ? SIZE_1G : size >= SIZE_2M ? SIZE_2M : PAGE_SIZE; // NPT's 4 MiB
    while (size > PAGE_SIZE && !((l1->gpa ^ ns->diverted) & ~(size - 1)))
        size = size == SIZE_1G ? SIZE_2M : PAGE_SIZE;
    return size;
}

// Whether [gpa, ...] is now mapped for `access`; if not, what is there is Nestor's to handle.
static bool fill(struct vcpu *vcpu, gpa_t gpa, const struct l1_translation *l1, u32 access)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    struct stage2 *tables = &ns->current->tables;
    struct stage2_entry own;
    unsigned rights;
    u64 size;
    int result;

    if (gpa >> (PAGE_SHIFT + 9 * tables->levels) || (l1->gpa & PAGE_MASK) == ns->diverted ||
        stage2_lookup(&vcpu->vm->stage2, l1->gpa, &own))
        return false;
    rights = l1->rights & own.rights;
    if (access & STAGE2_RWX & ~rights)
        return false;
    size = fill_size(ns, l1, own.page_size);
    result = stage2_fill(tables, &ns->pool, gpa, own.hpa, size, rights, own.type);
    if (result == -E_NOMEM)
        result = fill_at_limit(vcpu, gpa, own.hpa, size, rights, own.type);
    if (result < 0) {
        vm_stop(vcpu->vm, vcpu, "no memory for the tables of an L2");
        return true;
    }
    if (result & STAGE2_FLUSH) {
        ns->current->stale = true;
        flush_l2(vcpu, TLB_FLUSH_STAGE2);
    }
    return true;
}

// --- faults ---

static u32 access_of(const struct exit_stage2 *s)
{
    return (s->read ? (u32)L1_READ : 0) | (s->write ? (u32)L1_WRITE : 0) |
           (s->execute ? (u32)L1_EXECUTE : 0) | (s->gla_final ? 0 : (u32)L1_TABLE);
}

// A page that is missing. (By a misconfigured entry L1 marks a device, and won't map it.)
static void want(struct nested_stage2 *ns, gpa_t gpa, u32 access, const struct l1_fault *fault)
{
    if (fault->misconfigured || fault->log_full || (fault->error_code & PF_RSVD))
        return;
    ns->wanted_in = ns->current;
    ns->wanted = gpa;
    ns->wanted_access = access;
}

static int no_cmpxchg(void *ctx, gpa_t gpa, u64 old, u64 new_value, unsigned size)
{
    (void)ctx, (void)gpa, (void)old, (void)new_value, (void)size;
    return -E_FAULT;
}

static __attribute__((noinline)) void prefetch(struct vcpu *vcpu)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    const struct walk_memory memory = {table_read, no_cmpxchg, vcpu->vm};
    bool wanted = ns->wanted_in == ns->current;
    struct l1_translation l1;
    struct l1_fault fault;

    ns->wanted_in = NULL;
    if (wanted && !l1_stage2_walk(&ns->l1, &memory, ns->wanted, ns->wanted_access, &l1, &fault))
        fill(vcpu, ns->wanted, &l1, ns->wanted_access);
}

// What L1 was asked for L2 asks for at once: it saves an exit to have it mapped. A CPU may do so,
// too, where no flag is to be set for it.
void nested_stage2_prefetch(struct vcpu *vcpu)
{
    if (vcpu->nested_stage2->wanted_in)
        prefetch(vcpu);
}

bool nested_stage2_exit(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    gpa_t gpa = exit->stage2.gpa;
    struct l1_translation l1;
    struct l1_fault fault;
    u32 access;
    int error;

    if (!ns->current)
        return false;
    access = l1_stage2_access(&ns->l1, access_of(&exit->stage2));
    error = walk(vcpu, gpa, access, &l1, &fault);
    if (error == -E_FAULT) {
        want(ns, gpa, access, &fault);
        nested_stage2_fault(vcpu, exit, &fault);
    }
    if (error)
        return true;
    exit->stage2.gpa = l1.gpa;
    return fill(vcpu, gpa, &l1, access);
}

// --- for Nestor's emulation ---

static struct known *known_at(struct nested_stage2 *ns, gpa_t gpa)
{
    return &ns->known[gpa / PAGE_SIZE % KNOWN];
}

static void refuse(struct nested_stage2 *ns, gpa_t gpa, gva_t la, u32 access)
{
    ns->refused = true;
    ns->exit = (struct vm_exit){.kind = EXIT_STAGE2};
    ns->exit.stage2 = (struct exit_stage2){
        .gpa = gpa,
        .gla = la,
        .gla_valid = !(access & L1_NO_LINEAR),
        .gla_final = !(access & L1_TABLE),
        .read = access & L1_READ,
        .write = access & L1_WRITE,
        .execute = access & L1_EXECUTE,
    };
}

int nested_translate(struct vcpu *vcpu, gpa_t *gpa, gva_t la, u32 access)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;
    struct known *known = known_at(ns, *gpa);
    u64 page = (*gpa & PAGE_MASK) | 1;
    struct l1_translation l1;
    int error;

    ns->refused = false;
    if (!ns->current)
        return 0;
    access = l1_stage2_access(&ns->l1, access);
    if (known->page != page || (access & STAGE2_RWX & ~known->rights)) {
        error = walk(vcpu, *gpa, access, &l1, &ns->fault);
        if (error == -E_FAULT)
            refuse(ns, *gpa, la, access);
        if (error)
            return error;
        *known = (struct known){page, l1.gpa & PAGE_MASK, l1.rights};
    }
    *gpa = (known->gpa == ns->diverted ? ns->diverted_to : known->gpa) | (*gpa & ~PAGE_MASK);
    return 0;
}

bool nested_refused(const struct vcpu *vcpu)
{
    return vcpu->level && vcpu->nested_stage2->refused;
}

bool nested_tell_refused(struct vcpu *vcpu)
{
    struct nested_stage2 *ns = vcpu->nested_stage2;

    if (!nested_refused(vcpu))
        return false;
    ns->refused = false;
    nested_stage2_fault(vcpu, &ns->exit, &ns->fault);
    return true;
}
