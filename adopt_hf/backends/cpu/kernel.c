// ADOPT in one pass over memory: every element is read, updated and written once. The equations and their numbers are
// those of adopt_hf/algorithm.py, operation by operation, so results equal those of the definition.
// The file is compiled into the wheels (hatch_build.py), or on first use (compiler.py), and called through ctypes
// (launch.py). It needs neither Python nor torch.

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "export.h"
#include "numbers.h"
#include "threads.h"
#include "vectors.h"

enum { MAX_THREADS = 256 };

typedef struct {                  // StepScalars
    double scale, l2, decay, eps, clip, beta1, beta2, lr;
} Scalars;

typedef struct {                  // a Bucket, or a RoundedBucket
    int64_t tensors;
    const int64_t *table;         // one row per tensor: the addresses of theta, g, m, v, and the number of elements; if
                                  // rounded also the address of the scales, the number of columns, and the key
    int32_t row_length;
    int32_t param_type, grad_type;  // rows of TYPES in launch.py
    int32_t bits, block_size, round_param;  // bits of the moments if rounded, otherwise 0
    Scalars scalars;
} Bucket;

static int64_t chunks_of(int64_t elements, int64_t chunk) { return (elements + chunk - 1) / chunk; }

// -- the update of a stretch of one tensor --------------------------------------------------------------------------

// The operations of the equations, for floats, doubles, and vectors of floats (vectors.h).
static inline float all_float(float x) { return x; }
static inline double all_double(double x) { return x; }

// The smallest positive number, which replaces an observed v of 0, and its root, which counts as 0.
static const float LEAST_float = 0x1p-149f, ROOT_float = 0x1.6a09e6p-75f;
static const double LEAST_double = 0x1p-1074, ROOT_double = 0x1p-537;

#define LARGER_float(a, b) ((a) > (b) ? (a) : (b))
#define SMALLER_float(a, b) ((a) < (b) ? (a) : (b))
#define SELECT_float(which, a, b) ((which) ? (a) : (b))
#define LARGER_double LARGER_float
#define SMALLER_double SMALLER_float
#define SELECT_double SELECT_float

// x, or 0 where `keep` is 0. It uses bits, because compilers turn a condition into two branches with all that follows.
static inline float keep_float(int keep, float x) { return as_float(as_bits(x) & -(uint32_t)keep); }
static inline double keep_double(int keep, double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    bits &= -(uint64_t)keep;
    memcpy(&x, &bits, 8);
    return x;
}

#define NUMBERS_OF_U_AND_V(REAL, ELEMENT)                                                                     \
    const REAL scale = all_##REAL((ELEMENT)s->scale), l2 = all_##REAL((ELEMENT)s->l2),                        \
               eps = all_##REAL((ELEMENT)s->eps), clip = all_##REAL((ELEMENT)s->clip),                        \
               beta2 = all_##REAL((ELEMENT)s->beta2), rest2 = all_##REAL((ELEMENT)(1 - s->beta2));

#define NUMBERS_OF_THETA_AND_M(REAL, ELEMENT)                                                                 \
    const REAL decay = all_##REAL((ELEMENT)s->decay), rest1 = all_##REAL((ELEMENT)(1 - s->beta1)),            \
               lr = all_##REAL((ELEMENT)s->lr);

// The update u and the new v from theta, g and v. Comparisons replace fmin and fmax, which would lose NaN. A constant
// says whether there is an l2, because 0*inf is NaN. The root is 0, inf or NaN where v is; testing the root saves
// another read of v. SEEN: v is not 0, or a constant if that is known of all v. DIVISOR: max(root, eps). IS_ODD: v may
// be inf or NaN. IS_UNSEEN: an observed v that becomes 0 is replaced by `least`.
#define U_AND_V(REAL, ELEMENT, SQRT, SEEN, DIVISOR, IS_ODD, IS_UNSEEN)                                        \
    g = g * scale;                                                               /* (1) */                    \
    if (coupled) g = g + l2 * theta;                                                                          \
    REAL root = SQRT(v);                                                                                      \
    const __typeof__(root != 0) seen = SEEN;                                     /* (2) */                    \
    REAL u = g / DIVISOR;                                                        /* (4) */                    \
    u = LARGER_##REAL(-clip, u);                                                                              \
    u = SMALLER_##REAL(clip, u);                                                                              \
    u = keep_##REAL(seen, u);                                                                                 \
    if (IS_ODD) u = u + (root - root);                                                                        \
    v = beta2 * v + SELECT_##REAL(seen, rest2, all_##REAL(1)) * g * g;           /* (7): beta2*v is 0 where v is new */\
    if (IS_UNSEEN) v = LARGER_##REAL(keep_##REAL(seen | (g != 0), all_##REAL(LEAST_##ELEMENT)), v);

// The new theta and m from theta, u and m.
#define THETA_AND_M                                                                                            \
    theta = theta * decay;                                                       /* (3) */                    \
    m = m + rest1 * (u - m);                                                     /* (5) */                    \
    theta = theta - lr * m;                                                      /* (6) */

#define UPDATE(NAME, P, G, REAL, SQRT)                                                                        \
    INLINE void NAME##_if(P *restrict p, const G *restrict gs, REAL *restrict ms, REAL *restrict vs,          \
                          int64_t n, const Scalars *s, int coupled, int small_eps) {                          \
        NUMBERS_OF_U_AND_V(REAL, REAL)                                                                        \
        NUMBERS_OF_THETA_AND_M(REAL, REAL)                                                                    \
        _Pragma("GCC unroll 4") for (int64_t i = 0; i < n; i++) {                                             \
            REAL theta = load_##P(p[i]), g = load_##G(gs[i]), m = ms[i], v = vs[i];                           \
            U_AND_V(REAL, REAL, SQRT, root != 0,                                                              \
                    (small_eps && root <= ROOT_##REAL ? eps : LARGER_##REAL(eps, root)), 1, 1)                \
            THETA_AND_M                                                                                       \
            p[i] = store_##P(theta);                                                                          \
            ms[i] = m;                                                                                        \
            vs[i] = v;                                                                                        \
        }                                                                                                     \
    }                                                                                                         \
    static __attribute__((cold, noinline)) void NAME##_small_eps(P *p, const G *g, REAL *m, REAL *v, int64_t n,\
                                                                const Scalars *s) {                           \
        NAME##_if(p, g, m, v, n, s, (REAL)s->l2 != 0, 1);                                                     \
    }                                                                                                         \
    static void NAME(char *param, const char *grad, char *exp_avg, char *exp_avg_sq, int64_t start,           \
                     int64_t n, const Scalars *s) {                                                           \
        P *p = (P *)param + start;                                                                            \
        const G *g = (const G *)grad + start;                                                                 \
        REAL *m = (REAL *)exp_avg + start, *v = (REAL *)exp_avg_sq + start;                                   \
        const REAL eps = (REAL)s->eps;                                                                        \
        if (eps >= LEAST_##REAL && eps < ROOT_##REAL) NAME##_small_eps(p, g, m, v, n, s);                     \
        else if ((REAL)s->l2 != 0) NAME##_if(p, g, m, v, n, s, 1, 0);                                         \
        else NAME##_if(p, g, m, v, n, s, 0, 0);                                                               \
    }

UPDATE(update_float_float, float, float, float, sqrtf)
UPDATE(update_float_bfloat16, float, bfloat16, float, sqrtf)
UPDATE(update_float_float16, float, float16, float, sqrtf)
UPDATE(update_bfloat16_float, bfloat16, float, float, sqrtf)
UPDATE(update_bfloat16_bfloat16, bfloat16, bfloat16, float, sqrtf)
UPDATE(update_bfloat16_float16, bfloat16, float16, float, sqrtf)
UPDATE(update_float16_float, float16, float, float, sqrtf)
UPDATE(update_float16_bfloat16, float16, bfloat16, float, sqrtf)
UPDATE(update_float16_float16, float16, float16, float, sqrtf)
UPDATE(update_double_double, double, double, double, sqrt)

typedef void (*Update)(char *, const char *, char *, char *, int64_t, int64_t, const Scalars *);

static const Update UPDATES[4][4] = {  // by the types of theta and g
    {update_float_float, update_float_bfloat16, update_float_float16, 0},
    {update_bfloat16_float, update_bfloat16_bfloat16, update_bfloat16_float16, 0},
    {update_float16_float, update_float16_bfloat16, update_float16_float16, 0},
    {0, 0, 0, update_double_double},
};

// -- the update of a block whose results are rounded -----------------------------------------------------------------

#include "rounded.h"

static const float *floats_of(float *restrict copy, const char *x, int32_t type, int64_t n) {  // x itself, or copy
    if (type == 0) return (const float *)x;
    if (type == 1)
        for (int64_t i = 0; i < n; i++) copy[i] = load_bfloat16(((const bfloat16 *)x)[i]);
    else
        for (int64_t i = 0; i < n; i++) copy[i] = load_float16(((const float16 *)x)[i]);
    return copy;
}

static void store_numbers(char *p, const float *restrict theta, int32_t type, int64_t n) {
    if (type == 1)
        for (int64_t i = 0; i < n; i++) ((bfloat16 *)p)[i] = store_bfloat16(theta[i]);
    else
        for (int64_t i = 0; i < n; i++) ((float16 *)p)[i] = store_float16(theta[i]);
}

static void store_theta(const Bucket *bucket, const Block *at, const float *theta) {
    if (bucket->round_param) store_stochastically(at, theta);
    else if (bucket->param_type != 0) store_numbers(at->theta, theta, bucket->param_type, at->n);
    else if ((const void *)theta != (const void *)at->theta) memcpy(at->theta, theta, (size_t)at->n * sizeof *theta);
}

static void update_block(const Bucket *bucket, const Block *at) {  // with moments of 16 or 32 bits
    _Alignas(64) float copy[LARGEST_BLOCK], m[LARGEST_BLOCK], v[LARGEST_BLOCK];
    float *theta = (float *)floats_of(copy, at->theta, bucket->param_type, at->n);
    const int narrow = bucket->bits == 16;
    if (narrow) {
        decode_bfloat16(m, (const uint16_t *)at->m, at->n);
        decode_bfloat16(v, (const uint16_t *)at->v, at->n);
    }
    char *ms = narrow ? (char *)m : at->m, *vs = narrow ? (char *)v : at->v;
    UPDATES[0][bucket->grad_type]((char *)theta, at->g, ms, vs, 0, at->n, &bucket->scalars);
    if (narrow) encode_bfloat16_moments(at, m, v);
    store_theta(bucket, at, theta);
}

// Moments of 8 bits. The first half of a block's update computes u, stored in the array of m, and the new v. The second
// half computes theta and the new m. The second half of one block runs interleaved with the first half of the next,
// which waits for roots and divisions. A processor cannot queue all operations that wait for their results.

typedef struct {
    float theta[LARGEST_BLOCK], g[LARGEST_BLOCK];
    uint8_t m_codes[LARGEST_BLOCK], v_codes[LARGEST_BLOCK];
} Copies;

typedef struct {                  // a block during its update
    float *theta;
    const float *g;
    const uint8_t *m_codes, *v_codes;  // of the block, or copies if not floats or not whole groups
    float m_scale, v_scale;
    int32_t v_shift;
    float *m, *v;
    int64_t n;                    // whole groups
    int kind;                     // kind of the codes
    Extremes extremes;            // extremes of the new m and v
} Work;

static const Work NO_WORK = {.kind = ABOVE_ZERO};

// Fills up the last group with copies of the last element.
#define PADDED(COPY, X)                                                                                       \
    if ((const void *)(X) != (const void *)(COPY)) memcpy(COPY, X, (size_t)at->n * sizeof *(COPY));           \
    for (int64_t i = at->n; i < n; i++) (COPY)[i] = (COPY)[at->n - 1];                                        \
    X = COPY;

static Work begun(const Bucket *bucket, const Block *at, Copies *copies, float *m, float *v) {
    const int64_t n = whole_groups(at->n);
    float *theta = (float *)floats_of(copies->theta, at->theta, bucket->param_type, at->n);
    const float *g = floats_of(copies->g, at->g, bucket->grad_type, at->n);
    const uint8_t *m_codes = (const uint8_t *)at->m, *v_codes = (const uint8_t *)at->v;
    if (at->n < n) {
        PADDED(copies->theta, theta)
        PADDED(copies->g, g)
        PADDED(copies->m_codes, m_codes)
        PADDED(copies->v_codes, v_codes)
    }
    const int32_t shift = 23 - (int32_t)at->scales[2];
    const Extremes none = {{0}, {0}, all_words(UINT32_MAX), all_words(UINT32_MAX)};
    const float largest_v = as_float(ONE + ((LAST - 1u) << shift)) * at->scales[1];  // v of the last code, possibly inf
    const int kind = largest_v < INFINITY ? kind_of_codes(m_codes, v_codes, n) : ANYTHING;
    return (Work){theta, g, m_codes, v_codes, at->scales[0], at->scales[1], shift, m, v, n, kind, none};
}

// Values that no code of this `kind` stands for are not tested.
INLINE void find_u_and_v(const Work *w, int64_t start, const Scalars *s, Extremes *extremes, int coupled, int kind) {
    NUMBERS_OF_U_AND_V(floats, float)
    const floats v_scale = all_floats(w->v_scale);
    for (int64_t i = start; i < start + GROUP; i += LANES) {
        floats theta = load_floats(w->theta + i), g = load_floats(w->g + i),
               v = decode_exp_avg_sq(w->v_codes + i, v_scale, w->v_shift, kind);
        const whole all = ~(whole){0};
        U_AND_V(floats, float, roots, kind == ABOVE_ZERO ? all : root != 0, larger_floats(eps, root), kind == ANYTHING,
                kind != ABOVE_ZERO)
        store_floats(w->m + i, u);
        store_floats(w->v + i, v);
        extremes->most_v = larger_words(extremes->most_v, (words)v);
        extremes->least_v = smaller_words(extremes->least_v, (words)v);
        if (kind != ABOVE_ZERO) extremes->below_v = smaller_words(extremes->below_v, (words)v - 1);
    }
}

INLINE void find_theta_and_m(const Work *w, int64_t start, const Scalars *s, Extremes *extremes, int kind) {
    NUMBERS_OF_THETA_AND_M(floats, float)
    const floats m_scale = all_floats(w->m_scale);
    for (int64_t i = start; i < start + GROUP; i += LANES) {
        floats theta = load_floats(w->theta + i), u = load_floats(w->m + i),
               m = decode_exp_avg(w->m_codes + i, m_scale, kind);
        THETA_AND_M
        store_floats(w->theta + i, theta);
        store_floats(w->m + i, m);
        extremes->most_m = larger_words(extremes->most_m, (words)m & 0x7fffffff);
    }
}

INLINE void go_on_if(Work *now, Work *before, const Scalars *scalars, int coupled, int kind) {
    const Work first = *now, second = *before;  // local copies, which stores cannot alias
    const Scalars s = *scalars;
    Extremes of_now = first.extremes, of_before = second.extremes;
    const int64_t both = first.n < second.n ? first.n : second.n;
    for (int64_t i = 0; i < both; i += GROUP) {
        find_u_and_v(&first, i, &s, &of_now, coupled, kind);
        find_theta_and_m(&second, i, &s, &of_before, kind);
    }
    for (int64_t i = both; i < first.n; i += GROUP) find_u_and_v(&first, i, &s, &of_now, coupled, kind);
    for (int64_t i = both; i < second.n; i += GROUP) find_theta_and_m(&second, i, &s, &of_before, kind);
    now->extremes = of_now;
    before->extremes = of_before;
}

// The first half of the update of one block, and the second half of the previous block.
static void go_on(Work *now, Work *before, const Scalars *s) {
    const int coupled = (float)s->l2 != 0, of_m = before->kind == ANYTHING ? ANYTHING : ABOVE_ZERO;
    const int kind = now->kind < of_m ? now->kind : of_m;
    if (kind == ANYTHING) go_on_if(now, before, s, coupled, ANYTHING);
    else if (kind == UNSEEN && coupled) go_on_if(now, before, s, 1, UNSEEN);
    else if (kind == UNSEEN) go_on_if(now, before, s, 0, UNSEEN);
    else if (coupled) go_on_if(now, before, s, 1, ABOVE_ZERO);
    else go_on_if(now, before, s, 0, ABOVE_ZERO);
}

// Updates up to TOGETHER blocks. The scales of a block must be known before its codes are written. Computing them takes
// a processor long, but no longer for several blocks than for one.
static void update_coded_blocks(const Bucket *bucket, const Block *blocks, int count) {
    _Alignas(64) float m[LARGEST_BLOCK], v[LARGEST_BLOCK];
    _Alignas(64) Copies copies[2];
    const int64_t stride = bucket->block_size;
    Ranges ranges = {{0}, {0}, {0}, {0}};
    Work before = NO_WORK;
    for (int b = 0; b <= count; b++) {
        Work now = b < count ? begun(bucket, blocks + b, copies + b % 2, m + stride * b, v + stride * b) : NO_WORK;
        go_on(&now, &before, &bucket->scalars);
        if (b > 0) {
            store_theta(bucket, blocks + b - 1, before.theta);
            ranges.most_m[b - 1] = largest(before.extremes.most_m);
            ranges.most_v[b - 1] = largest(before.extremes.most_v);
            ranges.least_v[b - 1] = smallest(before.extremes.least_v);
            if (before.kind == ABOVE_ZERO && ranges.least_v[b - 1] == 0) ranges.least_v[b - 1] = 1;  // `least`
            ranges.below_v[b - 1] =
                before.kind == ABOVE_ZERO ? ranges.least_v[b - 1] - 1 : smallest(before.extremes.below_v);
        }
        before = now;
    }
    Grids grids = moved_grids(blocks, count, m, v, stride, &ranges, (float)bucket->scalars.beta2);
    for (int b = 0; b < count; b++) encode(blocks + b, m + stride * b, v + stride * b, &grids, b);
}

static Block block_of(const Bucket *bucket, const int64_t *row, int64_t b) {
    static const int64_t sizes[4] = {4, 2, 2, 8};
    const int64_t columns = row[6], of_row = chunks_of(columns, bucket->block_size), m_size = bucket->bits / 8;
    const int64_t first = b % of_row * bucket->block_size, left = columns - first, place = b / of_row * columns + first;
    return (Block){(char *)row[0] + place * sizes[bucket->param_type],
                   (const char *)row[1] + place * sizes[bucket->grad_type],
                   (char *)row[2] + place * m_size,
                   (char *)row[3] + place * m_size,
                   bucket->bits == 8 ? (float *)row[5] + 3 * b : 0,
                   left < bucket->block_size ? left : bucket->block_size,
                   (uint32_t)place,
                   (uint32_t)row[7]};
}

// Updates blocks `start` to `start + count` of a tensor. It is cut between its rows, and each row into blocks.
static void update_blocks(const Bucket *bucket, const int64_t *row, int64_t start, int64_t count) {
    const int64_t fit = LARGEST_BLOCK / bucket->block_size, together = fit < TOGETHER ? fit : TOGETHER;
    for (int64_t b = start; b < start + count; b += together) {
        Block blocks[TOGETHER];
        int n = 0;
        for (; n < together && b + n < start + count; n++) blocks[n] = block_of(bucket, row, b + n);
        if (bucket->bits == 8) update_coded_blocks(bucket, blocks, n);
        else
            for (int i = 0; i < n; i++) update_block(bucket, blocks + i);
    }
}

// -- threads --------------------------------------------------------------------------------------------------------

typedef struct {
    const Bucket *buckets;
    int64_t count;
    int64_t chunk;                // elements that a thread takes at once
    atomic_llong next;            // the first chunk that no thread has taken
} Step;

// The units of a tensor that chunks consist of: elements, or blocks if results are rounded.
static int64_t units_of(const Bucket *bucket, const int64_t *row) {
    if (bucket->bits == 0) return row[4];
    return row[6] == 0 ? 0 : row[4] / row[6] * chunks_of(row[6], bucket->block_size);
}

static int64_t units_a_chunk(const Bucket *bucket, int64_t chunk) {
    return bucket->bits == 0 ? chunk : chunks_of(chunk, bucket->block_size);
}

// Long chunks, with which memory is fastest, but enough of them that all threads end at the same time.
static int64_t chunk_for(int64_t elements, int64_t threads) {
    int64_t chunk = elements / (16 * threads) / 1024 * 1024;
    return chunk < 1 << 14 ? 1 << 14 : chunk > 1 << 18 ? 1 << 18 : chunk;
}

static Ended THREAD_CALL work(void *argument) {
    Step *step = argument;
    int64_t before = 0;           // chunks of the previous tensors
    int64_t chunk = atomic_fetch_add(&step->next, 1);
    for (int64_t b = 0; b < step->count; b++) {
        const Bucket *bucket = step->buckets + b;
        Update update = UPDATES[bucket->param_type][bucket->grad_type];
        int64_t long_chunk = units_a_chunk(bucket, step->chunk);
        for (int64_t i = 0; i < bucket->tensors; i++) {
            const int64_t *row = bucket->table + bucket->row_length * i;
            int64_t units = units_of(bucket, row), chunks = chunks_of(units, long_chunk);
            while (chunk < before + chunks) {
                int64_t start = (chunk - before) * long_chunk, left = units - start;
                int64_t count = left < long_chunk ? left : long_chunk;
                if (bucket->bits != 0)
                    update_blocks(bucket, row, start, count);
                else
                    update((char *)row[0], (const char *)row[1], (char *)row[2], (char *)row[3], start, count,
                           &bucket->scalars);
                chunk = atomic_fetch_add(&step->next, 1);
            }
            before += chunks;
        }
    }
    return 0;
}

// Updates all buckets with up to `threads` threads, including the caller's. All threads end with the call, so a fork
// finds no threads. If no more threads can be started, the running ones do all the work.
EXPORT void adopt_step(const Bucket *buckets, int64_t count, int64_t threads) {
    int64_t elements = 0, chunks = 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    for (int64_t b = 0; b < count; b++)
        for (int64_t i = 0; i < buckets[b].tensors; i++) elements += buckets[b].table[buckets[b].row_length * i + 4];
    Step step = {buckets, count, chunk_for(elements, threads), 0};
    for (int64_t b = 0; b < count; b++)
        for (int64_t i = 0; i < buckets[b].tensors; i++)
            chunks += chunks_of(units_of(buckets + b, buckets[b].table + buckets[b].row_length * i),
                                units_a_chunk(buckets + b, step.chunk));
    if (threads > chunks) threads = chunks;
    Thread started[MAX_THREADS];
    int64_t running = 0;
    while (running + 1 < threads && start_thread(&started[running], work, &step)) running++;
    work(&step);
    while (running > 0) join_thread(started[--running]);
}
