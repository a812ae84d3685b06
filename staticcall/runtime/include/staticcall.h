/*
 * Static calls for C and C++ programs: calls through a function pointer that seldom changes, compiled as calls of a
 * trampoline so that they can be patched into plain direct calls. C11 or C++17, gcc or clang, x86-64, ELF, Linux.
 *
 * A static call `x` is made of
 *
 *     __SCK__x   the key: where the call leads now
 *     __SCT__x   the trampoline, eight bytes that go there:   ff 25 disp32   jmp *__SCK__x(%rip)
 *                                                             0f b9          ud1, never reached
 *     a record   {addr, key} in the section `static_call_sites`, for every instruction that calls the trampoline;
 *                made from the object by `staticcall annotate --section static_call_sites`
 *
 * Names and records are the Linux kernel's. The trampoline is the posted series' temporary one: it reads the key, so a
 * program works, and static_call_update() does, where nothing was ever annotated, bound or patched.
 *
 *     int twice(int x);
 *     DEFINE_STATIC_CALL(scale, twice);          in one file
 *     DECLARE_STATIC_CALL(scale, twice);         in a header, for the others
 *
 *     y = static_call(scale)(x);
 *     static_call_update(scale, thrice);
 *
 * Calls alone need this header only. Updates need the runtime, one C file: see `staticcall --runtime-source`.
 * License: Apache-2.0
 */
#ifndef STATICCALL_H
#define STATICCALL_H

#if !defined(__x86_64__) || defined(__ILP32__) || !defined(__ELF__)
#error "staticcall.h is for x86-64 ELF programs"
#endif

#include <stddef.h>
#include <stdint.h>

/* A program's own warnings are about its own code; what is wrong in a static call's use is an error. */
#pragma GCC system_header

#ifdef __cplusplus
#define __SC_C extern "C"
#define __SC_C_BEGIN extern "C" {
#define __SC_C_END }
#else
#define __SC_C extern
#define __SC_C_BEGIN
#define __SC_C_END
#endif

#define __SC_HIDDEN __attribute__((visibility("hidden")))
#define __SC_EXPORTED __attribute__((visibility("default")))

__SC_C_BEGIN

/* ---- the forms in memory ---- */

/*
 * `func` is what the calls lead to, never null: a static call that does nothing leads to __static_call_nop.
 * `origin` is the key of the shared object that offers the static call, where this is one that uses it.
 * `owner` is set by the runtime that keeps the sites of an offered key.
 */
struct static_call_key {
    void *func;
    void *trampoline;
    struct static_call_key *origin;
    const void *owner;
};

/* One record. Each field is relative to its own address; bit 0 of the key says that the site is a jump. */
struct __attribute__((packed)) static_call_site {
    int32_t addr;
    int32_t key;
};

/* The ends of this program's or this library's own table, as the linker marks them; null where it has none. */
extern const struct static_call_site __start_static_call_sites[] __attribute__((weak, visibility("hidden")));
extern const struct static_call_site __stop_static_call_sites[] __attribute__((weak, visibility("hidden")));
extern void *__dso_handle __SC_HIDDEN;

/* What a static call without a target, and one that shall give 0, lead to: one of each per linked file. */
extern void __static_call_nop(void) __SC_HIDDEN;
extern long __static_call_return0(void) __SC_HIDDEN;

/* ret with a signature, by which the one of another shared object is known too. */
#define __SC_NOP_CODE UINT32_C(0xccb90fc3)
#define __SC_NOP_ALIGN 16

/* Link-time optimization may put the assembly of several files into one. */
__asm__(".ifndef __static_call_nop\n"
        ".pushsection .text.__static_call_nop,\"axG\",@progbits,__static_call_nop,comdat\n"
        "    .balign 16\n"
        "    .weak __static_call_nop\n"
        "    .hidden __static_call_nop\n"
        "    .type __static_call_nop, @function\n"
        "__static_call_nop:\n"
        "    .byte 0xc3, 0x0f, 0xb9, 0xcc\n"
        "    .size __static_call_nop, . - __static_call_nop\n"
        ".popsection\n"
        ".pushsection .text.__static_call_return0,\"axG\",@progbits,__static_call_return0,comdat\n"
        "    .balign 16\n"
        "    .weak __static_call_return0\n"
        "    .hidden __static_call_return0\n"
        "    .type __static_call_return0, @function\n"
        "__static_call_return0:\n"
        "    xorl %eax, %eax\n"
        "    ret\n"
        "    .size __static_call_return0, . - __static_call_return0\n"
        ".popsection\n"
        ".endif\n");

/* ---- the runtime: what registers, updates or chooses gives 0 or a negative errno ---- */

/*
 * How a running program's sites are rewritten. The head of staticcall.c says what each rests on.
 *
 * Under emulate and torvalds no thread that makes static calls may block SIGTRAP: Linux kills it where it traps.
 *
 *   emulate      int3 on the first byte, sync, the rest, sync, the first byte, sync; a thread that traps meanwhile is
 *                led by the SIGTRAP handler as the new instruction would have led it. Every form, every address. The
 *                default, because it is the one that Intel's and AMD's manuals both allow.
 *   torvalds     the same on the prefix of a prefixed call; a thread that traps goes on behind the prefix where the
 *                displacement lies in one 64-byte line, and is led on where it does not. Other sites go by their
 *                trampolines.
 *   lutomirski   one store of the displacement, if the opcode is e8 and the instruction lies in one 64-byte line.
 *   rel32        one store, if the opcode is e8 and the displacement lies in one 64-byte line.
 *   block8       one store, if the opcode is e8 and the displacement lies in one aligned block of 8 bytes.
 *                In these three all other sites go by their trampolines.
 *   out-of-line  no site is rewritten: all go by their trampolines.
 */
enum static_call_protocol {
    STATIC_CALL_EMULATE,
    STATIC_CALL_TORVALDS,
    STATIC_CALL_LUTOMIRSKI,
    STATIC_CALL_REL32,
    STATIC_CALL_BLOCK8,
    STATIC_CALL_OUT_OF_LINE
};

struct static_call_state {
    enum static_call_protocol protocol;
    int text;                 /* 0: sites can be rewritten; else the negative errno of what forbids it */
    unsigned long sites;      /* of all registered tables */
    unsigned long direct;     /* of these, those that go straight to the target */
    unsigned long trampoline; /* those that go by their trampolines */
    unsigned long foreign;    /* those whose bytes are no branch that could be led elsewhere: never written */
    unsigned long updates;    /* of keys */
    unsigned long syncs;      /* of all cores */
    unsigned long emulated;   /* threads that ran into an int3 and were led on */
    unsigned long resumed;    /* threads that ran into the int3 of a prefix and went on behind it */
};

/* One key of a batch: see STATIC_CALL_CHANGE. */
struct static_call_change {
    struct static_call_key *key;
    void *func;
};

/*
 * A runtime compiled with -DSTATIC_CALL_OBSERVER=name calls name(step, address, bytes, length) behind every step of an
 * update, in the updating thread, for tests that hold a step's state open or look at it. KEYS and SYNC have no address.
 */
enum static_call_step {
    STATIC_CALL_STEP_KEYS,  /* the keys have their new targets */
    STATIC_CALL_STEP_WRITE, /* bytes were written to the text, in any order */
    STATIC_CALL_STEP_STORE, /* bytes were written to the text by one store */
    STATIC_CALL_STEP_SYNC   /* every core has been made to see all of the above */
};

/*
 * Choose the protocol, at any time: sites that it excludes are led back to their trampolines, the others straight.
 * Where the program does not choose, the environment may, by a name: STATICCALL_PROTOCOL=out-of-line suits debuggers.
 */
int static_call_set_protocol(enum static_call_protocol protocol);
const char *static_call_protocol_name(enum static_call_protocol protocol);
void static_call_get_state(struct static_call_state *state);

/*
 * For programs that put a SIGTRAP handler of their own in place of the runtime's: call it first, with the handler's
 * arguments. 1: it was a site's trap, return from the handler; 0: it was not. Async-signal-safe.
 */
int static_call_handle_trap(const void *siginfo, void *ucontext);

struct __static_call_table {
    const struct static_call_site *start;
    const struct static_call_site *stop;
    void *dso;
};
int __static_call_register(struct __static_call_table table);
int __static_call_unregister(struct __static_call_table table);
int __static_call_update(struct __static_call_table table, const struct static_call_change *changes, size_t count);
/* Weak: an object that only offers and is never updated does without the runtime. */
int __static_call_offer(struct __static_call_table table, struct static_call_key *key) __attribute__((weak));

static inline struct __static_call_table __static_call_own_table(void)
{
    struct __static_call_table table = {__start_static_call_sites, __stop_static_call_sites, &__dso_handle};
    return table;
}

/*
 * Register the table of the program or library that calls this, and lead its sites straight to their targets.
 * A library calls it from a constructor; dlclose() takes the table out again. Calling it twice does nothing more.
 */
static inline int static_call_init(void)
{
    return __static_call_register(__static_call_own_table());
}

/* Lead the sites back to their trampolines and take the table out. dlclose() does that by itself. */
static inline int static_call_exit(void)
{
    return __static_call_unregister(__static_call_own_table());
}

/* Update several keys in one go: all sites of all keys share their syncs. An error means that nothing has changed. */
static inline int static_call_update_batch(const struct static_call_change *changes, size_t count)
{
    return __static_call_update(__static_call_own_table(), changes, count);
}

static inline int __static_call_update_one(struct static_call_key *key, void *func)
{
    struct static_call_change change = {key, func};
    return static_call_update_batch(&change, 1);
}

static inline void *__static_call_query(const struct static_call_key *key)
{
    const struct static_call_key *origin = key->origin ? key->origin : key;
    void *func = __atomic_load_n(&origin->func, __ATOMIC_ACQUIRE);
    if ((uintptr_t)func % __SC_NOP_ALIGN == 0 && *(const uint32_t *)func == __SC_NOP_CODE)
        return NULL;
    return func;
}

__SC_C_END

/* A function's address as data: ISO C has no such conversion, POSIX needs it. */
#define __SC_CODE(function) (__extension__(void *)(function))

/* ---- declaring and defining ---- */

/*
 * Declare a static call whose targets have the type of `function`. The trampoline is declared with default visibility
 * and defined hidden: only so do compilers leave calls to the linker under -fno-plt, which makes prefixed ones of them.
 * The key is named for its record, also in a file that only calls and has no other use of it.
 */
#define DECLARE_STATIC_CALL(name, function)                                                                   \
    __asm__(".globl __SCK__" #name);                                                                          \
    __SC_C struct static_call_key __SCK__##name __SC_HIDDEN;                                                  \
    __SC_C __SC_EXPORTED __typeof__(function) __SCT__##name

#define __SC_TRAMPOLINE(name)                                                                                 \
    __asm__(".pushsection .static_call.text,\"ax\",@progbits\n"                                               \
            "    .balign 8\n"                                                                                 \
            "    .globl __SCT__" #name "\n"                                                                   \
            "    .hidden __SCT__" #name "\n"                                                                  \
            "    .type __SCT__" #name ", @function\n"                                                         \
            "__SCT__" #name ":\n"                                                                             \
            "    jmp *__SCK__" #name "(%rip)\n"                                                               \
            "    .byte 0x0f, 0xb9\n"                                                                          \
            "    .size __SCT__" #name ", . - __SCT__" #name "\n"                                              \
            ".popsection\n")

#define __SC_DEFINE(name, function, target, origin)                                                           \
    DECLARE_STATIC_CALL(name, function);                                                                      \
    __SC_TRAMPOLINE(name);                                                                                    \
    __attribute__((used)) struct static_call_key __SCK__##name = {                                               \
        __SC_CODE(target), __SC_CODE(__SCT__##name), origin, NULL}

/* Define a static call that leads to `function` at first. In one file, at file scope. */
#define DEFINE_STATIC_CALL(name, function) __SC_DEFINE(name, function, function, NULL)

/* One that does nothing at first; `function` gives the type, which returns void, and need not be defined. */
#define DEFINE_STATIC_CALL_NULL(name, function) __SC_DEFINE(name, function, __static_call_nop, NULL)

/* One that gives 0 at first; `function` gives the type, which returns an integer or a pointer. */
#define DEFINE_STATIC_CALL_RET0(name, function) __SC_DEFINE(name, function, __static_call_return0, NULL)

/* ---- across shared objects ---- */

/*
 * Records, keys and trampolines are a linked file's own: a self-relative record cannot lead out of it. So the object
 * that defines the static call offers it, under two exported names, and one that uses it has a key and a trampoline
 * of its own, which lead to the offered ones until the runtime leads them straight to the target:
 *
 *     DEFINE_STATIC_CALL(scale, twice);          the offering object, in the file that defines it
 *     OFFER_STATIC_CALL(scale);
 *
 *     USE_STATIC_CALL(scale, twice);             the using object, in one file
 *     DECLARE_STATIC_CALL(scale, twice);         in its others
 *
 * Without any runtime a use goes by both trampolines and always arrives. For updates both objects must share one
 * runtime (libstaticcall.so, or the program's, exported): with two, uses stay with the trampolines, and an update from
 * the object that does not own the key is refused (-EXDEV).
 */
#define OFFER_STATIC_CALL(name)                                                                               \
    __SC_C struct static_call_key __SCX__##name __attribute__((alias("__SCK__" #name), visibility("default"))); \
    __asm__(".globl __SCO__" #name "\n"                                                                       \
            ".type __SCO__" #name ", @function\n"                                                             \
            ".set __SCO__" #name ", __SCT__" #name "\n");                                                     \
    __attribute__((constructor)) static void __static_call_offer_##name(void)                                 \
    {                                                                                                         \
        if (__static_call_offer)                                                                              \
            __static_call_offer(__static_call_own_table(), &__SCK__##name);                                   \
    }                                                                                                         \
    __SC_C struct static_call_key __SCX__##name

#define USE_STATIC_CALL(name, function)                                                                       \
    __SC_C __SC_EXPORTED struct static_call_key __SCX__##name;                                                \
    __SC_C __SC_EXPORTED __typeof__(function) __SCO__##name;                                                  \
    __SC_DEFINE(name, function, __SCO__##name, &__SCX__##name)

/* ---- calling ---- */

#define static_call(name) __SCT__##name

/* A static call that may do nothing: its result, if its type has one, must not be used. */
#define static_call_cond(name) (void)__SCT__##name

/* The function that the static call leads to, typed; NULL where it does nothing. */
#define static_call_query(name) (__extension__(__typeof__(&__SCT__##name)) __static_call_query(&__SCK__##name))

/* ---- updating ---- */

/* A function of exactly the key's type, as a void pointer; anything else does not compile. */
#ifdef __cplusplus
#define __SC_FUNCTION(name, function)                                                                         \
    __extension__({                                                                                           \
        __typeof__(&__SCT__##name) __sc_function = (function);                                                \
        (void *)__sc_function;                                                                                \
    })
#else
#define __SC_FUNCTION(name, function)                                                                         \
    __extension__({                                                                                           \
        _Static_assert(__builtin_types_compatible_p(__typeof__(&*(function)), __typeof__(&__SCT__##name)),    \
                       "the target's type is not that of static call " #name);                                \
        (void *)(function);                                                                                   \
    })
#endif

#define STATIC_CALL_CHANGE(name, function) {&__SCK__##name, __SC_FUNCTION(name, function)}
#define STATIC_CALL_CHANGE_NULL(name) {&__SCK__##name, __SC_CODE(__static_call_nop)}
#define STATIC_CALL_CHANGE_RET0(name) {&__SCK__##name, __SC_CODE(__static_call_return0)}

/* When it returns 0, every call that begins afterwards, in any thread, goes to `function`. Not async-signal-safe. */
#define static_call_update(name, function)                                                                    \
    __static_call_update_one(&__SCK__##name, __SC_FUNCTION(name, function))
#define static_call_update_null(name) __static_call_update_one(&__SCK__##name, __SC_CODE(__static_call_nop))
#define static_call_update_ret0(name) __static_call_update_one(&__SCK__##name, __SC_CODE(__static_call_return0))

#endif
