/*
 * The runtime of staticcall.h: keeps the tables of a process and rewrites their sites while threads run through them.
 * One file, no dependency but libc (glibc or another with the same calls). License: Apache-2.0
 *
 * What is rewritten is the displacement of a call, jmp or jcc; opcode, prefixes and length stay as they were made.
 *
 * INT3 (emulate, torvalds). Processors may fetch an instruction's bytes in pieces, and Intel's manual allows code to
 * change under a running core only if that core passes a serializing instruction before it runs the new code (SDM
 * volume 3, "Handling Self- and Cross-Modifying Code"). One byte, though, is old or new and nothing between:
 *
 *     1  cc           on the first byte of every site of the batch
 *     2  sync         every core has seen it: from here on nobody enters a site without a trap
 *     3  keys         whoever traps, or comes by a trampoline, goes to the new targets from here on
 *     4  rel32        nobody fetches it
 *     5  sync
 *     6  first byte   whoever still sees cc traps, and goes to the same target
 *     7  sync
 *
 * The trap handler needs no knowledge of where an update is: an int3 at a site means "go where the key leads", at any
 * time, also long after the update. So a failure in the middle leaves a slow program and not a wrong one.
 *
 * Behind the int3 of a prefix (torvalds) there stands a whole call, and a thread may go on there instead. But rel32 may
 * be rewritten just then: that is right only where it changes in one piece. So a thread goes on behind the prefix
 * where rel32 lies in one line and is stored at once, and is led to the target as above where it does not.
 *
 * ONE STORE (lutomirski, rel32, block8). Within a cache line a store of four bytes is seen whole or not at all on every
 * processor that we know, and AMD promises it within an aligned block of eight (APM volume 2, "Access Atomicity", and
 * volume 2, 7.6.1, "Cross-Modifying Code", which allows it); Intel promises it for data (SDM volume 3, "Guaranteed
 * Atomic Operations") and asks for the serializing instruction all the same. Hence int3 is the default.
 *
 * WRITING. No mapping is ever writable and executable. INT3 writes through /proc/thread-self/mem, which leaves
 * the text's own protection alone. That is no single store, so ONE STORE copies the text to a memfd, maps that over the
 * text, private and executable, and stores through a second mapping of it, writable for as long as an update lasts.
 * fork() takes that second mapping away first: what parent and child share then nobody can write any more, and the
 * next update of either begins with a copy of its own.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <staticcall.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef STATIC_CALL_OBSERVER
void STATIC_CALL_OBSERVER(int step, uintptr_t address, const unsigned char *bytes, size_t length);
#define OBSERVE(step, address, bytes, length) STATIC_CALL_OBSERVER(step, (uintptr_t)(address), bytes, length)
#else
#define OBSERVE(step, address, bytes, length) ((void)0)
#endif

/* ---- what the processor and the kernel call things ---- */

enum {
    OPCODE_CALL = 0xe8,
    OPCODE_JMP = 0xe9,
    OPCODE_LONG = 0x0f, /* 0f 80 to 0f 8f: jcc */
    OPCODE_JCC = 0x80,
    OPCODE_INT3 = 0xcc,
    OPCODE_INT = 0xcd, /* cd 03 is an int3 as well */
    DISPLACEMENT = 4,
    CACHE_LINE = 64,
    BLOCK = 8,
    MOST_PREFIXES = 8,
    RECORD_FLAGS = 3,
    RECORD_TAIL = 1
};

static const unsigned char INDIRECT_JMP[] = {0xff, 0x25};       /* jmp *disp32(%rip), six bytes */
static const unsigned char TRAMPOLINE_SIGNATURE[] = {0x0f, 0xb9}; /* behind it */

/* Prefixes that do nothing to a near branch: segments, address size, REX. */
static bool is_idle_prefix(unsigned char byte)
{
    return byte == 0x26 || byte == 0x2e || byte == 0x36 || byte == 0x3e || (byte >= 0x64 && byte <= 0x65) ||
           byte == 0x67 || (byte >= 0x40 && byte <= 0x4f);
}

/* Conditions in the order of their opcodes, in pairs of which the second is the contrary of the first. */
static bool condition_holds(unsigned condition, uint64_t flags)
{
    bool carry = flags & 0x001, parity = flags & 0x004, zero = flags & 0x040;
    bool sign = flags & 0x080, overflow = flags & 0x800;
    bool holds[] = {overflow, carry, zero, carry || zero, sign, parity, sign != overflow, zero || sign != overflow};
    return holds[condition >> 1] != (condition & 1);
}

/* From linux/membarrier.h and asm/prctl.h, which not every libc's headers bring. */
enum {
    QUERY_COMMANDS = 0,
    SYNC_CORE = 1 << 5,
    REGISTER_SYNC_CORE = 1 << 6,
    SHADOW_STACK_STATUS = 0x5005,
    SHADOW_STACK = 1
};

/* ---- sites and tables ---- */

enum form { FOREIGN, CALL, JMP, JCC };

/* Where a site may go, by protocol and address. */
enum way { BY_TRAMPOLINE, BY_STORE, BY_INT3 };

/*
 * The trap handler reads address, key, length, form and condition unlocked: they stay as they are. So does `resumes`
 * once it is true, and it becomes true while no site of the process traps.
 */
struct site {
    unsigned char *address; /* of the first byte, prefixes included */
    struct static_call_key *key;
    struct table *table;
    unsigned char length;
    unsigned char first; /* the byte that an int3 hides */
    enum form form;
    enum way way;
    unsigned condition;
    bool resumes;  /* a thread that traps goes on behind the prefix */
    bool trapping; /* an update that failed left its int3 there */
    bool stale;    /* and what stands behind the int3 is not what it should be */
    bool stored;   /* its protocol was one of single stores once: it may be led back by one */
    int32_t displacement;
};

/* One linked file's table. `text` are the pages of its sites; `writable` is their second mapping, or null. */
struct table {
    struct table *next;
    struct __static_call_table id;
    unsigned char *text;
    size_t text_size;
    unsigned char *writable;
    bool open;
    size_t count;
    struct site sites[];
};

/* All sites of all tables, as the trap handler and updates look for them. Never changed, only replaced. */
struct index {
    size_t count;
    struct site **by_key;
    struct site *by_address[];
};

/* What an update does to one site. */
struct edit {
    struct site *site;
    int32_t displacement;
    enum way way;
    bool moves;
    bool set; /* the step that is under way has been done here */
};

static struct table *tables;
static struct index *sites_index;
static int readers; /* trap handlers that look at the index now */
static enum static_call_protocol protocol = STATIC_CALL_EMULATE;
static bool started;
static bool shadow_stack;
static int no_sync; /* why cores cannot be made to see what was written, or 0 */
static struct edit *edits;
static size_t edits_room;
static int memory = -1; /* /proc/thread-self/mem, open during one update only */
static struct static_call_state counts;
static const char identity; /* its address tells this copy of the runtime from another one */

static const char *const NAMES[] = {"emulate", "torvalds", "lutomirski", "rel32", "block8", "out-of-line"};

const char *static_call_protocol_name(enum static_call_protocol which)
{
    return (size_t)which < sizeof(NAMES) / sizeof(*NAMES) ? NAMES[which] : NULL;
}

static void count_one(unsigned long *counter)
{
    __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

static void *function_of(const struct static_call_key *key)
{
    return __atomic_load_n(&key->func, __ATOMIC_ACQUIRE);
}

/* The key that decides: another object's, if its sites and this one's are kept by the same runtime. */
static struct static_call_key *deciding(struct static_call_key *key)
{
    return key->origin && key->origin->owner == &identity ? key->origin : key;
}

static unsigned char *displacement_at(const struct site *site)
{
    return site->address + site->length - DISPLACEMENT;
}

static bool lies_in_one(const unsigned char *address, size_t size, uintptr_t unit)
{
    return (uintptr_t)address / unit == ((uintptr_t)address + size - 1) / unit;
}

static bool goes_by_trampoline(const struct site *site)
{
    return site->address + site->length + site->displacement == (unsigned char *)site->key->trampoline;
}

/* ---- the lock ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* What a thread was before it took the lock. */
struct before {
    sigset_t mask;
    int cancelling;
};

/* Signals wait, so that no handler of this thread meets the lock that it holds, and so does its end. */
static void lock(struct before *before)
{
    sigset_t most;
    sigfillset(&most);
    sigdelset(&most, SIGTRAP);
    sigdelset(&most, SIGSEGV);
    sigdelset(&most, SIGBUS);
    sigdelset(&most, SIGILL);
    sigdelset(&most, SIGFPE);
    sigdelset(&most, SIGSYS);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before->cancelling);
    pthread_sigmask(SIG_BLOCK, &most, &before->mask);
    pthread_mutex_lock(&mutex);
}

static void unlock(const struct before *before)
{
    pthread_mutex_unlock(&mutex);
    pthread_sigmask(SIG_SETMASK, &before->mask, NULL);
    pthread_setcancelstate(before->cancelling, NULL);
}

/* ---- the trap ---- */

static struct site *site_at(const struct index *index, const unsigned char *address)
{
    size_t low = 0, high = index ? index->count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (index->by_address[middle]->address < address)
            low = middle + 1;
        else
            high = middle;
    }
    return index && low < index->count && index->by_address[low]->address == address ? index->by_address[low] : NULL;
}

/* Go on as the site's instruction would, if it led to where the key leads now. */
static void lead_on(const struct site *site, greg_t *registers)
{
    greg_t next = (greg_t)(uintptr_t)(site->address + site->length);
    greg_t target = (greg_t)(uintptr_t)function_of(deciding(site->key));

    if (site->form == CALL) {
        registers[REG_RSP] -= (greg_t)sizeof(greg_t);
        *(greg_t *)registers[REG_RSP] = next;
    } else if (site->form == JCC && !condition_holds(site->condition, (uint64_t)registers[REG_EFL])) {
        target = next;
    }
    registers[REG_RIP] = target;
}

int static_call_handle_trap(const void *siginfo, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *trapped = (const unsigned char *)registers[REG_RIP] - 1;
    const struct site *found;
    struct site site;

    if (((const siginfo_t *)siginfo)->si_code <= 0) /* sent by a process: no int3 was executed */
        return 0;
    __atomic_fetch_add(&readers, 1, __ATOMIC_SEQ_CST);
    found = site_at(__atomic_load_n(&sites_index, __ATOMIC_SEQ_CST), trapped);
    if (found)
        site = *found;
    __atomic_fetch_sub(&readers, 1, __ATOMIC_SEQ_CST);
    if (!found)
        return 0;
    /* What follows may fault on a full stack, and never come back: nobody waits for it. */
    if (site.resumes && !site.stale) {
        count_one(&counts.resumed);
    } else {
        count_one(&counts.emulated);
        lead_on(&site, registers);
    }
    return 1;
}

/* The handlers that ours stands in for: the first one found, and the one found last. */
static struct sigaction *first_before, *last_before;
/*
 * Two handlers that hand on to each other would do so for ever: the context says that it was here before, and the frame
 * that it still is, since a handler may also leave by longjmp.
 */
struct handing_on {
    const void *context;
    uintptr_t frame;
    bool first; /* to the handler found first, behind which there is none of ours */
};
static __thread __attribute__((tls_model("initial-exec"))) struct handing_on handing_on;

/* Nobody's int3: what happens by default. */
static void default_trap(const siginfo_t *info, bool ignored)
{
    struct sigaction action;
    sigset_t trap;

    if (ignored && info->si_code <= 0)
        return;
    memset(&action, 0, sizeof(action));
    action.sa_handler = SIG_DFL;
    sigaction(SIGTRAP, &action, NULL);
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    raise(SIGTRAP);
    pthread_sigmask(SIG_UNBLOCK, &trap, NULL);
}

static bool is_plain(const struct sigaction *action, void (*handler)(int))
{
    return !(action->sa_flags & SA_SIGINFO) && action->sa_handler == handler;
}

/* There was an int3, and by now there is none: of a table that is gone, or another runtime's. cd 03 takes two bytes. */
static bool is_gone(const siginfo_t *info, const ucontext_t *context)
{
    const unsigned char *trapped = (const unsigned char *)context->uc_mcontext.gregs[REG_RIP] - 1;
    return info->si_code == SI_KERNEL && *trapped != OPCODE_INT3 && !(*trapped == 3 && trapped[-1] == OPCODE_INT);
}

/* `first`: by our first entry, which stands in for the handler found first; the other one for the one found last. */
static void hand_on(int number, siginfo_t *info, ucontext_t *context, bool first)
{
    struct handing_on outer = handing_on;
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    bool again = outer.context == context && frame < outer.frame;
    struct handing_on own = {context, frame, again || first};
    const struct sigaction *before = __atomic_load_n(own.first ? &first_before : &last_before, __ATOMIC_ACQUIRE);
    sigset_t mask = context->uc_sigmask, here;

    if (is_gone(info, context)) {
        context->uc_mcontext.gregs[REG_RIP]--;
        return;
    }
    if ((again && outer.first) || !before || is_plain(before, SIG_DFL) || is_plain(before, SIG_IGN)) {
        default_trap(info, before && is_plain(before, SIG_IGN));
        return;
    }
    for (int other = 1; other < NSIG; other++)
        if (sigismember(&before->sa_mask, other) == 1)
            sigaddset(&mask, other);
    sigdelset(&mask, SIGTRAP); /* it may make static calls, and so may what interrupts it */
    pthread_sigmask(SIG_SETMASK, &mask, &here);
    handing_on = own;
    if (before->sa_flags & SA_SIGINFO)
        before->sa_sigaction(number, info, context);
    else
        before->sa_handler(number);
    handing_on = outer;
    pthread_sigmask(SIG_SETMASK, &here, NULL);
}

static void on_any_trap(int number, siginfo_t *info, void *context, bool first)
{
    int error = errno;
    if (!static_call_handle_trap(info, context))
        hand_on(number, info, (ucontext_t *)context, first);
    errno = error;
}

/*
 * Two entries: a program that puts back what a handler of its own stood in for a while puts back the first one, by
 * which its handler of that while is not asked any more.
 */
static void on_trap(int number, siginfo_t *info, void *context)
{
    on_any_trap(number, info, context, true);
}

static void on_later_trap(int number, siginfo_t *info, void *context)
{
    on_any_trap(number, info, context, false);
}

static bool is_ours(const struct sigaction *action)
{
    return (action->sa_flags & SA_SIGINFO) &&
           (action->sa_sigaction == on_trap || action->sa_sigaction == on_later_trap);
}

/* Field by field: libc fills the kernel's few bytes of the mask, and leaves the others as they were. */
static bool is_same(const struct sigaction *one, const struct sigaction *other)
{
    if (one->sa_sigaction != other->sa_sigaction || one->sa_flags != other->sa_flags)
        return false;
    for (int number = 1; number < NSIG; number++)
        if (sigismember(&one->sa_mask, number) != sigismember(&other->sa_mask, number))
            return false;
    return true;
}

/* Remember a handler to hand on to. Copies are never freed: a handler may be reading one for as long as it likes. */
static int remember(const struct sigaction *action)
{
    struct sigaction *copy;

    if (is_ours(action) || (last_before && is_same(last_before, action)))
        return 0;
    copy = malloc(sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    memcpy(copy, action, sizeof(*copy));
    if (!first_before)
        __atomic_store_n(&first_before, copy, __ATOMIC_RELEASE);
    __atomic_store_n(&last_before, copy, __ATOMIC_RELEASE);
    return 0;
}

/* Put our handler on top of what is there now: a program may have put its own in place of it since. */
static int stand_in_front(void)
{
    struct sigaction present, replaced, ours;
    bool later;
    int error;

    memset(&present, 0, sizeof(present));
    if (sigaction(SIGTRAP, NULL, &present))
        return -errno;
    if (is_ours(&present))
        return 0;
    later = first_before != NULL;
    error = remember(&present);
    if (error)
        return error;
    memset(&ours, 0, sizeof(ours));
    ours.sa_sigaction = later ? on_later_trap : on_trap;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigfillset(&ours.sa_mask);
    /* A return address may be pushed onto a guard page: that is for whoever handles those. */
    sigdelset(&ours.sa_mask, SIGSEGV);
    sigdelset(&ours.sa_mask, SIGBUS);
    memset(&replaced, 0, sizeof(replaced));
    if (sigaction(SIGTRAP, &ours, &replaced))
        return -errno;
    error = remember(&replaced); /* somebody may have been faster */
    ours.sa_sigaction = on_later_trap;
    if (!error && !later && last_before != first_before && sigaction(SIGTRAP, &ours, NULL))
        error = -errno;
    return error;
}

/* ---- making cores see it, and writing it ---- */

static int sync_cores(void)
{
    if (syscall(SYS_membarrier, SYNC_CORE, 0, 0))
        return -errno;
    counts.syncs++;
    OBSERVE(STATIC_CALL_STEP_SYNC, 0, NULL, 0);
    return 0;
}

/* Whether every page of the text is mapped readable and executable, and nothing else. */
static int check_text(const struct table *table)
{
    unsigned long low, high, reached = (unsigned long)table->text, end = reached + table->text_size;
    char line[512], access[5];
    bool whole = true; /* the line that follows is a line's beginning */
    FILE *maps = fopen("/proc/thread-self/maps", "re");

    if (!maps)
        return -errno;
    while (reached < end && fgets(line, sizeof(line), maps)) {
        if (whole && sscanf(line, "%lx-%lx %4s", &low, &high, access) == 3 && low <= reached && reached < high) {
            if (strcmp(access, "r-xp") != 0)
                break;
            reached = high;
        }
        whole = strchr(line, '\n') != NULL;
    }
    fclose(maps);
    return reached < end ? -EACCES : 0;
}

static void drop_writable(struct table *table)
{
    if (table->writable)
        munmap(table->writable, table->text_size);
    table->writable = NULL;
    table->open = false;
}

/*
 * Put a copy of the text in the text's place, with a second mapping that is writable until finish(). What fails leaves
 * the mappings that were there, by which an update can still be taken back.
 */
static int copy_text(struct table *table)
{
    int error = check_text(table), file;
    void *second = MAP_FAILED;

    if (error)
        return error;
    file = memfd_create("staticcall", MFD_CLOEXEC);
    if (file < 0)
        return -errno;
    if (pwrite(file, table->text, table->text_size, 0) != (ssize_t)table->text_size)
        goto failed;
    second = mmap(NULL, table->text_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (second == MAP_FAILED || madvise(second, table->text_size, MADV_DONTFORK) ||
        mmap(table->text, table->text_size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED)
        goto failed;
    close(file);
    drop_writable(table);
    table->writable = second;
    table->open = true;
    return 0;
failed:
    error = errno ? -errno : -EIO;
    if (second != MAP_FAILED)
        munmap(second, table->text_size);
    close(file);
    return error;
}

static int open_writable(struct table *table)
{
    int error = table->writable ? 0 : copy_text(table);
    if (!error && !table->open && mprotect(table->writable, table->text_size, PROT_READ | PROT_WRITE))
        error = -errno;
    table->open = !error;
    return error;
}

static void close_writable(struct table *table)
{
    if (table->open && mprotect(table->writable, table->text_size, PROT_READ))
        drop_writable(table);
    table->open = false;
}

static void put(struct table *table, unsigned char *address, const void *bytes, size_t size, bool at_once)
{
    unsigned char *where = table->writable + (address - table->text);
    uint32_t word;

    if (at_once) {
        memcpy(&word, bytes, sizeof(word));
        __asm__ volatile("movl %1, (%0)" : : "r"(where), "r"(word) : "memory");
    } else {
        memcpy(where, bytes, size);
    }
}

/*
 * Write through the second mapping. A debugger's breakpoint gives the text's page a copy of its own, which the second
 * mapping does not reach: then the text is copied anew.
 */
static int put_through(struct table *table, unsigned char *address, const void *bytes, size_t size, bool at_once)
{
    int error;

    if (table->open) {
        put(table, address, bytes, size, at_once);
        if (memcmp(address, bytes, size) == 0)
            return 0;
    }
    error = copy_text(table);
    if (error)
        return error;
    put(table, address, bytes, size, at_once);
    return memcmp(address, bytes, size) == 0 ? 0 : -EIO;
}

/* Write bytes in whatever order: one, or such as nobody fetches. */
static int write_text(struct table *table, unsigned char *address, const void *bytes, size_t size)
{
    int error = 0;

    if (table->writable)
        error = put_through(table, address, bytes, size, false);
    else if (pwrite(memory, bytes, size, (off_t)(uintptr_t)address) != (ssize_t)size)
        error = errno ? -errno : -EIO;
    if (!error)
        OBSERVE(STATIC_CALL_STEP_WRITE, address, (const unsigned char *)bytes, size);
    return error;
}

static int store_text(struct table *table, unsigned char *address, int32_t displacement)
{
    int error = put_through(table, address, &displacement, DISPLACEMENT, true);
    if (!error)
        OBSERVE(STATIC_CALL_STEP_STORE, address, (const unsigned char *)&displacement, DISPLACEMENT);
    return error;
}

static int write_displacement(const struct edit *edit, int32_t displacement)
{
    struct site *site = edit->site;
    if (edit->way == BY_STORE || site->resumes)
        return store_text(site->table, displacement_at(site), displacement);
    return write_text(site->table, displacement_at(site), &displacement, DISPLACEMENT);
}

/* ---- an update: what it needs, what it does ---- */

static size_t edits_count;

static bool reaches(const struct site *site, const void *target, int32_t *displacement)
{
    int64_t distance = (int64_t)((uintptr_t)target - (uintptr_t)(site->address + site->length));
    *displacement = (int32_t)distance;
    return distance == *displacement;
}

/* Note what shall happen to a site whose key leads to `func`. `still` ones are looked at too, but not written. */
static void collect(struct site *site, const void *func, bool still)
{
    struct edit *edit = &edits[edits_count];

    if (site->form == FOREIGN)
        return;
    edit->site = site;
    edit->set = false;
    edit->way = BY_INT3;
    if (!site->trapping && (site->way == BY_STORE || (site->way == BY_TRAMPOLINE && site->stored)))
        edit->way = BY_STORE;
    if (site->way == BY_TRAMPOLINE || !reaches(site, func, &edit->displacement))
        if (!reaches(site, site->key->trampoline, &edit->displacement))
            return; /* the linker led it there, so it does */
    edit->moves = site->trapping || edit->displacement != site->displacement;
    if (edit->moves || (still && site->way != BY_TRAMPOLINE))
        edits_count++;
}

/* Somebody else may have written there: then nothing is known of the place, and nothing is done. */
static bool is_as_we_left_it(const struct site *site)
{
    return *site->address == (site->trapping ? OPCODE_INT3 : site->first) &&
           (site->trapping || memcmp(displacement_at(site), &site->displacement, DISPLACEMENT) == 0);
}

/* A thread with a shadow stack cannot be given a return address by a signal handler. */
static bool can_trap(const struct site *site)
{
    return !shadow_stack || site->form != CALL || site->resumes;
}

static int open_memory(const struct site *site)
{
    memory = open("/proc/thread-self/mem", O_RDWR | O_CLOEXEC);
    if (memory < 0)
        return -errno;
    /* Some kernels let it be opened and forbid this: ask with a byte that changes nothing. */
    if (pwrite(memory, site->address, 1, (off_t)(uintptr_t)site->address) == 1)
        return 0;
    close(memory);
    memory = -1;
    return -EACCES;
}

/*
 * Have ready whatever one edit needs; `handler` is why there is no trap handler, or 0. The descriptor is opened anew
 * for each update: programs close what they do not know, and a number that is somebody else's file by then must not be
 * written to.
 */
static int prepare_one(const struct edit *edit, int handler)
{
    struct site *site = edit->site;
    int error = 0;

    if (edit->way == BY_INT3) {
        error = can_trap(site) ? handler : -EOPNOTSUPP;
        if (!error && memory < 0 && !site->table->writable && !site->resumes && open_memory(site))
            error = open_writable(site->table);
    }
    if (!error && (edit->way == BY_STORE || site->resumes || site->table->writable))
        error = open_writable(site->table);
    return error;
}

/*
 * Where something is forbidden, sites that go by their trampolines stay there, and all is well: the trampoline reads
 * the key. A site that goes straight already has to follow, or the update cannot be.
 */
static int prepare(void)
{
    size_t kept = 0;
    bool traps = false;
    int error = 0, handler = 0, forbidden;

    for (size_t i = 0; i < edits_count; i++)
        traps = traps || edits[i].way == BY_INT3;
    if (traps)
        handler = stand_in_front();
    forbidden = no_sync ? no_sync : syscall(SYS_membarrier, QUERY_COMMANDS, 0, 0) < 0 ? -errno : 0;
    counts.text = 0;
    for (size_t i = 0; i < edits_count; i++) {
        struct edit edit = edits[i];
        int refusal = forbidden ? forbidden : prepare_one(&edit, handler);
        if (refusal)
            counts.text = refusal;
        if (refusal && edit.moves && (edit.site->trapping || !goes_by_trampoline(edit.site)))
            error = refusal;
        if (!refusal && edit.moves)
            edits[kept++] = edit;
    }
    edits_count = kept;
    return error;
}

static void finish(void)
{
    for (struct table *table = tables; table; table = table->next)
        close_writable(table);
    if (memory >= 0)
        close(memory);
    memory = -1;
}

static int write_first(const struct edit *edit, unsigned char byte)
{
    return write_text(edit->site->table, edit->site->address, &byte, 1);
}

/* A site that trapped before goes on doing so. */
static void withdraw_traps(void)
{
    for (size_t i = 0; i < edits_count; i++)
        if (edits[i].way == BY_INT3 && edits[i].set && !edits[i].site->trapping)
            edits[i].site->trapping = write_first(&edits[i], edits[i].site->first) != 0;
}

/* Steps 1 and 2. What fails here is taken back: no key has changed yet. */
static int set_traps(bool *any)
{
    int error = 0;

    *any = false;
    for (size_t i = 0; i < edits_count && !error; i++) {
        if (edits[i].way != BY_INT3)
            continue;
        error = write_first(&edits[i], OPCODE_INT3);
        edits[i].set = !error;
        *any = true;
    }
    if (!error && *any)
        error = sync_cores();
    if (error)
        withdraw_traps();
    return error;
}

/* One store for each site whose protocol says so; what fails is taken back, as no key has changed yet. */
static int store_displacements(void)
{
    int error = 0;

    for (size_t i = 0; i < edits_count && !error; i++) {
        if (edits[i].way != BY_STORE)
            continue;
        error = write_displacement(&edits[i], edits[i].displacement);
        edits[i].set = !error;
    }
    for (size_t i = 0; error && i < edits_count; i++)
        if (edits[i].way == BY_STORE && edits[i].set)
            if (write_displacement(&edits[i], edits[i].site->displacement))
                edits[i].site->displacement = edits[i].displacement;
    if (error)
        sync_cores();
    return error;
}

static void note(int failure)
{
    if (failure)
        counts.text = failure;
}

/* Steps 4 and 5. A site whose int3 stands goes the right way already: it may go on so, if this fails. */
static bool set_displacements(void)
{
    int failure = 0;

    for (size_t i = 0; i < edits_count; i++) {
        if (edits[i].way == BY_INT3) {
            edits[i].site->trapping = true;
            failure = write_displacement(&edits[i], edits[i].displacement);
            edits[i].set = !failure;
            __atomic_store_n(&edits[i].site->stale, failure != 0, __ATOMIC_SEQ_CST);
            note(failure);
        }
        if (edits[i].set)
            edits[i].site->displacement = edits[i].displacement;
    }
    failure = edits_count ? sync_cores() : 0;
    note(failure);
    return !failure;
}

/* Steps 6 and 7. */
static void take_traps_away(void)
{
    int failure;

    for (size_t i = 0; i < edits_count; i++) {
        if (edits[i].way != BY_INT3 || !edits[i].set)
            continue;
        failure = write_first(&edits[i], edits[i].site->first);
        edits[i].site->trapping = failure != 0;
        note(failure);
    }
    sync_cores(); /* whoever sees an int3 still is led to the same place */
}

static size_t first_of_key(const struct static_call_key *key)
{
    size_t low = 0, high = sites_index->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (deciding(sites_index->by_key[middle]->key) < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#define for_each_site_of(site, decides)                                                                       \
    for (size_t place_ = first_of_key(decides);                                                               \
         place_ < sites_index->count && ((site) = sites_index->by_key[place_], deciding((site)->key) == (decides)); \
         place_++)

static void set_keys(const struct static_call_change *changes, size_t count)
{
    struct site *site;

    for (size_t i = 0; i < count; i++) {
        struct static_call_key *key = deciding(changes[i].key);
        __atomic_store_n(&key->func, changes[i].func, __ATOMIC_RELEASE);
        for_each_site_of (site, key)
            if (site->key != key)
                __atomic_store_n(&site->key->func, changes[i].func, __ATOMIC_RELEASE);
    }
    OBSERVE(STATIC_CALL_STEP_KEYS, 0, NULL, 0);
}

/*
 * Carry out what was collected, and set the keys. An error means that nothing has changed. What fails once the keys are
 * set leaves an int3 in its place, by which calls go the right way: `counts.text` tells of it.
 */
static int apply(const struct static_call_change *changes, size_t count)
{
    bool trapping = false;
    int error = 0;

    for (size_t i = 0; i < edits_count && !error; i++)
        error = is_as_we_left_it(edits[i].site) ? 0 : -EILSEQ;
    if (!error && edits_count)
        error = prepare();
    if (!error && edits_count)
        error = set_traps(&trapping);
    if (!error && edits_count) {
        error = store_displacements();
        if (error && trapping)
            withdraw_traps();
    }
    if (!error) {
        set_keys(changes, count);
        if (set_displacements() && trapping)
            take_traps_away();
    }
    finish();
    return error;
}

/* ---- tables ---- */

static int compare_addresses(const void *one, const void *other)
{
    const struct site *a = *(struct site *const *)one, *b = *(struct site *const *)other;
    return (a->address > b->address) - (a->address < b->address);
}

static int compare_keys(const void *one, const void *other)
{
    const struct static_call_key *a = deciding((*(struct site *const *)one)->key);
    const struct static_call_key *b = deciding((*(struct site *const *)other)->key);
    return a == b ? compare_addresses(one, other) : (a > b) - (a < b);
}

/* Put another index in place; whoever looks at the old one is waited for, which is no longer than a lookup. */
static void replace_index(struct index *index)
{
    struct index *old = __atomic_exchange_n(&sites_index, index, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&readers, __ATOMIC_SEQ_CST) != 0)
        sched_yield();
    free(old);
}

/* Make the index of all tables, and room for as many edits. */
static int build_index(void)
{
    size_t count = 0;
    struct index *index;

    for (struct table *table = tables; table; table = table->next)
        count += table->count;
    if (count > edits_room) {
        struct edit *more = realloc(edits, count * sizeof(*edits));
        if (!more)
            return -ENOMEM;
        edits = more;
        edits_room = count;
    }
    index = malloc(sizeof(*index) + 2 * count * sizeof(*index->by_address));
    if (!index)
        return -ENOMEM;
    index->count = 0;
    index->by_key = index->by_address + count;
    for (struct table *table = tables; table; table = table->next)
        for (size_t i = 0; i < table->count; i++)
            index->by_address[index->count++] = &table->sites[i];
    if (count)
        memcpy(index->by_key, index->by_address, count * sizeof(*index->by_address));
    qsort(index->by_address, count, sizeof(*index->by_address), compare_addresses);
    qsort(index->by_key, count, sizeof(*index->by_key), compare_keys);
    replace_index(index);
    return 0;
}

/*
 * The key of a record, without its flags. An annotation without the key's symbol names the trampoline, which names the
 * key; the two are told apart by the signature, whose place in a key are the upper bytes of a function's address.
 */
static struct static_call_key *key_of(uintptr_t resolved)
{
    const unsigned char *code = (const unsigned char *)(resolved & ~(uintptr_t)RECORD_FLAGS);
    const unsigned char *end = code + sizeof(INDIRECT_JMP) + DISPLACEMENT;
    int32_t displacement;

    if (memcmp(code, INDIRECT_JMP, sizeof(INDIRECT_JMP)) == 0 &&
        memcmp(end, TRAMPOLINE_SIGNATURE, sizeof(TRAMPOLINE_SIGNATURE)) == 0) {
        memcpy(&displacement, code + sizeof(INDIRECT_JMP), DISPLACEMENT);
        code = end + displacement;
    }
    return (struct static_call_key *)(uintptr_t)code;
}

/*
 * What the bytes of a site are: a branch with a displacement, else nothing of ours. Where it leads is not asked, as in
 * the kernel (__static_call_validate): a site that was bound before it was linked may go by a PLT.
 */
static void decode(struct site *site, bool tail)
{
    const unsigned char *code = site->address;
    size_t prefixes = 0;

    while (prefixes < MOST_PREFIXES && is_idle_prefix(code[prefixes]))
        prefixes++;
    code += prefixes;
    site->first = *site->address;
    site->form = *code == OPCODE_CALL ? CALL : *code == OPCODE_JMP ? JMP : FOREIGN;
    if (code[0] == OPCODE_LONG && (code[1] & 0xf0) == OPCODE_JCC) {
        site->form = JCC;
        site->condition = code[1] & 0x0f;
    }
    site->length = (unsigned char)(prefixes + (site->form == JCC ? 2 : 1) + DISPLACEMENT);
    if (site->form == FOREIGN || tail != (site->form != CALL)) {
        site->form = FOREIGN;
        return;
    }
    memcpy(&site->displacement, displacement_at(site), DISPLACEMENT);
}

/* The rule of each protocol, by the site's bytes and address. */
static enum way choose_way(const struct site *site)
{
    const unsigned char *rel32 = displacement_at(site);
    bool stored = false;

    switch (protocol) {
    case STATIC_CALL_EMULATE:
        return BY_INT3;
    case STATIC_CALL_TORVALDS:
        return site->form == CALL && site->first != OPCODE_CALL ? BY_INT3 : BY_TRAMPOLINE;
    case STATIC_CALL_LUTOMIRSKI:
        stored = lies_in_one(site->address, site->length, CACHE_LINE);
        break;
    case STATIC_CALL_REL32:
        stored = lies_in_one(rel32, DISPLACEMENT, CACHE_LINE);
        break;
    case STATIC_CALL_BLOCK8:
        stored = lies_in_one(rel32, DISPLACEMENT, BLOCK);
        break;
    case STATIC_CALL_OUT_OF_LINE:
        break;
    }
    return site->form == CALL && stored ? BY_STORE : BY_TRAMPOLINE;
}

/*
 * A thread that went on behind an int3 may do so at any later time: a site where that is right is written by one store
 * for ever, whatever protocol comes after.
 */
static void choose_ways(struct table *table)
{
    for (size_t i = 0; i < table->count; i++) {
        struct site *site = &table->sites[i];
        site->stored = site->stored || site->way == BY_STORE;
        site->way = choose_way(site);
        if (protocol == STATIC_CALL_TORVALDS && site->way == BY_INT3 &&
            lies_in_one(displacement_at(site), DISPLACEMENT, CACHE_LINE) && (table->writable || !copy_text(table)))
            site->resumes = true;
    }
}

static void find_text(struct table *table)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), low = UINTPTR_MAX, high = 0;

    for (size_t i = 0; i < table->count; i++) {
        uintptr_t first = (uintptr_t)table->sites[i].address, end = first + table->sites[i].length;
        if (table->sites[i].form == FOREIGN)
            continue;
        low = first < low ? first : low;
        high = end > high ? end : high;
    }
    if (low > high)
        return;
    table->text = (unsigned char *)(low & ~(page - 1));
    table->text_size = ((high + page - 1) & ~(page - 1)) - (low & ~(page - 1));
}

static int compare_sites(const void *one, const void *other)
{
    const struct site *a = one, *b = other;
    if (a->address != b->address)
        return a->address > b->address ? 1 : -1;
    if (a->key != b->key)
        return a->key > b->key ? 1 : -1;
    return (a->form > b->form) - (a->form < b->form);
}

/* Records that are there twice are one site: where a site was pinned, its record is a copy of another one's. */
static void drop_repeats(struct table *table)
{
    size_t kept = 0;

    qsort(table->sites, table->count, sizeof(*table->sites), compare_sites);
    for (size_t i = 0; i < table->count; i++)
        if (!kept || compare_sites(&table->sites[kept - 1], &table->sites[i]))
            table->sites[kept++] = table->sites[i];
    table->count = kept;
}

static struct table *read_table(struct __static_call_table id)
{
    size_t count = (size_t)(id.stop - id.start);
    struct table *table = calloc(1, sizeof(*table) + count * sizeof(*table->sites));

    if (!table)
        return NULL;
    table->id = id;
    for (size_t i = 0; i < count; i++) {
        const struct static_call_site *record = &id.start[i];
        struct site *site = &table->sites[table->count++];
        site->address = (unsigned char *)((uintptr_t)&record->addr + (uintptr_t)(intptr_t)record->addr);
        uintptr_t key = (uintptr_t)&record->key + (uintptr_t)(intptr_t)record->key;
        site->key = key_of(key);
        site->table = table;
        decode(site, key & RECORD_TAIL);
    }
    drop_repeats(table);
    find_text(table);
    choose_ways(table);
    return table;
}

static struct table **find_table(const struct static_call_site *start)
{
    struct table **link = &tables;
    while (*link && (*link)->id.start != start)
        link = &(*link)->next;
    return link;
}

/* Whether nothing is left to register: also where there is no table. */
static bool knows(struct __static_call_table id)
{
    return id.start == id.stop || *find_table(id.start);
}

/* Lead the sites of a table, those that use one key of another object, or all, to where their keys lead now. */
static int settle(const struct table *table, const struct static_call_key *origin)
{
    edits_count = 0;
    for (size_t i = 0; i < sites_index->count; i++) {
        struct site *site = sites_index->by_address[i];
        void *func = function_of(deciding(site->key));
        bool concerned = table ? site->table == table : !origin || site->key->origin == origin;
        if (!concerned)
            continue;
        __atomic_store_n(&site->key->func, func, __ATOMIC_RELEASE);
        collect(site, func, site->table == table);
    }
    return apply(NULL, 0);
}

/*
 * Lead the sites of a table back to their trampolines, and what uses another object's static call to that one's
 * trampoline: from then on they follow the keys by themselves, whoever still runs through them.
 */
static int lead_back(struct table *table)
{
    int error;

    edits_count = 0;
    for (size_t i = 0; i < table->count; i++)
        collect(&table->sites[i], table->sites[i].key->trampoline, false);
    error = apply(NULL, 0);
    for (size_t i = 0; i < table->count; i++) {
        struct static_call_key *key = table->sites[i].key;
        if (key->origin)
            __atomic_store_n(&key->func, key->origin->trampoline, __ATOMIC_RELEASE);
        if (!error && table->sites[i].trapping)
            error = counts.text;
    }
    return error;
}

static void remove_table(struct table **link)
{
    struct table *table = *link;

    *link = table->next;
    if (build_index())
        replace_index(NULL); /* the next update makes one */
    drop_writable(table);
    free(table);
}

static void at_dlclose(void *start)
{
    struct before before;
    struct table **link;

    lock(&before);
    link = find_table(start);
    if (*link) {
        lead_back(*link); /* at exit other threads may still be there */
        remove_table(link);
    }
    unlock(&before);
}

extern int __cxa_atexit(void (*function)(void *), void *argument, void *dso);

static bool has_breakpoint(const struct table *table)
{
    for (size_t i = 0; i < table->count; i++)
        if (table->sites[i].first == OPCODE_INT3)
            return true;
    return false;
}

static int add_table(struct __static_call_table id, bool in_program)
{
    struct table *table;
    int error = 0;

    if (knows(id))
        return 0;
    table = read_table(id);
    if (!table)
        return -ENOMEM;
    table->next = tables;
    tables = table;
    if (has_breakpoint(table))
        error = -EILSEQ;
    else if (!in_program && __cxa_atexit(at_dlclose, (void *)(uintptr_t)id.start, id.dso))
        error = -ENOMEM;
    else
        error = build_index();
    if (error) {
        tables = table->next;
        drop_writable(table);
        free(table);
        return error;
    }
    return settle(table, NULL);
}

/* ---- the process ---- */

static struct before before_forking;

static void before_fork(void)
{
    struct before before;

    lock(&before);
    before_forking = before; /* by whoever holds the lock, and read back before it goes */
    for (struct table *table = tables; table; table = table->next)
        drop_writable(table);
}

static void after_fork(void)
{
    struct before before = before_forking;
    unlock(&before);
}

static void after_fork_in_child(void)
{
    readers = 0; /* the threads that looked are not here */
    after_fork();
}

static bool has_shadow_stack(void)
{
    unsigned long features = 0;
    return syscall(SYS_arch_prctl, SHADOW_STACK_STATUS, &features) == 0 && (features & SHADOW_STACK);
}

static int start(void)
{
    const char *wish;

    if (started)
        return sites_index ? 0 : build_index();
    wish = secure_getenv("STATICCALL_PROTOCOL");
    for (size_t i = 0; wish && i < sizeof(NAMES) / sizeof(*NAMES); i++)
        if (strcmp(wish, NAMES[i]) == 0)
            protocol = (enum static_call_protocol)i;
    shadow_stack = has_shadow_stack();
    no_sync = syscall(SYS_membarrier, REGISTER_SYNC_CORE, 0, 0) ? -errno : 0;
    if (pthread_atfork(before_fork, after_fork, after_fork_in_child))
        return -ENOMEM;
    started = true;
    return build_index();
}

static int holds_address(struct dl_phdr_info *object, size_t size, void *sought)
{
    const void **address = sought;
    (void)size;
    if ((uintptr_t)object->dlpi_phdr != getauxval(AT_PHDR))
        return 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && (uintptr_t)*address - object->dlpi_addr - segment->p_vaddr < segment->p_memsz)
            *address = NULL;
    }
    return 1;
}

/* The program itself never goes; anything else may. */
static bool is_of_the_program(const void *address)
{
    dl_iterate_phdr(holds_address, &address);
    return !address;
}

/* A trap handler cannot be unloaded: a shared object that holds the runtime stays. A static program has no dlopen. */
extern int dladdr(const void *address, Dl_info *info) __attribute__((weak));
extern void *dlopen(const char *path, int mode) __attribute__((weak));

static void stay_loaded(void)
{
    static bool done;
    Dl_info info;

    if (__atomic_exchange_n(&done, true, __ATOMIC_RELAXED) || !dladdr || !dlopen)
        return;
    if (!is_of_the_program(&identity) && dladdr(&identity, &info))
        dlopen(info.dli_fname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD | RTLD_NODELETE);
}

static int use_protocol(enum static_call_protocol which)
{
    protocol = which;
    for (struct table *table = tables; table; table = table->next)
        choose_ways(table);
    return settle(NULL, NULL);
}

int static_call_set_protocol(enum static_call_protocol which)
{
    enum static_call_protocol old;
    struct before before;
    int error;

    if (!static_call_protocol_name(which))
        return -EINVAL;
    stay_loaded();
    lock(&before);
    error = start();
    old = protocol;
    if (!error) {
        error = use_protocol(which);
        if (error)
            use_protocol(old);
    }
    unlock(&before);
    return error;
}

int __static_call_register(struct __static_call_table id)
{
    bool in_program = is_of_the_program(id.start);
    struct before before;
    int error;

    stay_loaded();
    lock(&before);
    error = start();
    if (!error)
        error = add_table(id, in_program);
    unlock(&before);
    return error;
}

int __static_call_unregister(struct __static_call_table id)
{
    struct table **link;
    struct before before;
    int error = 0;

    lock(&before);
    link = find_table(id.start);
    if (*link) {
        error = lead_back(*link);
        if (!error)
            remove_table(link);
    }
    unlock(&before);
    return error;
}

static bool is_used(const struct static_call_key *origin)
{
    for (size_t i = 0; sites_index && i < sites_index->count; i++)
        if (sites_index->by_address[i]->key->origin == origin)
            return true;
    return false;
}

int __static_call_offer(struct __static_call_table id, struct static_call_key *key)
{
    struct before before;
    int error = __static_call_register(id);

    if (error)
        return error;
    error = -EXDEV;
    lock(&before);
    if (!key->owner || key->owner == &identity) {
        key->owner = &identity;
        error = 0;
        if (is_used(key)) {
            error = build_index();
            if (error)
                key->owner = NULL;
            else
                error = settle(NULL, key);
        }
    }
    unlock(&before);
    return error;
}

static int compare_pointers(const void *one, const void *other)
{
    const void *a = *(void *const *)one, *b = *(void *const *)other;
    return (a > b) - (a < b);
}

/* A key may be in a batch once: which of two targets should it have? */
static int check_once(const struct static_call_change *changes, size_t count)
{
    const struct static_call_key **keys = count > 1 ? malloc(count * sizeof(*keys)) : NULL;
    int error = 0;

    if (count < 2)
        return 0;
    if (!keys)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        keys[i] = deciding(changes[i].key);
    qsort(keys, count, sizeof(*keys), compare_pointers);
    for (size_t i = 1; i < count; i++)
        if (keys[i] == keys[i - 1])
            error = -EINVAL;
    free(keys);
    return error;
}

static int check_changes(const struct static_call_change *changes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct static_call_key *key = changes[i].key;
        if (!key || !changes[i].func)
            return -EINVAL;
        key = key->origin ? key->origin : key;
        if (key->owner != &identity && (key->owner || key != changes[i].key))
            return -EXDEV;
    }
    return check_once(changes, count);
}

/* What the caller's own table needs: the program's is added by itself, a library has to call static_call_init(). */
static int know_table(struct __static_call_table id, bool in_program)
{
    return in_program || knows(id) ? add_table(id, in_program) : -ENOENT;
}

int __static_call_update(struct __static_call_table id, const struct static_call_change *changes, size_t count)
{
    bool in_program = false;
    struct site *site;
    struct before before;
    int error;

    lock(&before);
    if (!knows(id)) {
        /*
         * Whose table it is takes the loader's lock to answer: not with ours held, which constructors wait for, and not
         * without need, since in the child of a process that was loading when it forked nobody lets go of it.
         */
        unlock(&before);
        stay_loaded();
        in_program = is_of_the_program(id.start);
        lock(&before);
    }
    error = start();
    if (!error)
        error = know_table(id, in_program);
    if (!error)
        error = check_changes(changes, count);
    if (!error) {
        edits_count = 0;
        for (size_t i = 0; i < count; i++)
            for_each_site_of (site, deciding(changes[i].key))
                collect(site, changes[i].func, false);
        error = apply(changes, count);
    }
    counts.updates += error ? 0 : count;
    unlock(&before);
    return error;
}

void static_call_get_state(struct static_call_state *state)
{
    struct before before;

    lock(&before);
    *state = counts;
    state->protocol = protocol;
    for (const struct table *table = tables; table; table = table->next) {
        state->sites += table->count;
        for (size_t i = 0; i < table->count; i++) {
            if (table->sites[i].form == FOREIGN)
                state->foreign++;
            else if (goes_by_trampoline(&table->sites[i]))
                state->trampoline++;
            else
                state->direct++;
        }
    }
    unlock(&before);
}
