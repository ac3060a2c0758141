// ADOPT in one pass over memory: every element is read, updated and written once. The equations are those of
// adopt_hf/algorithm.py, with its numbers, operation by operation, so that results equal those of the definition.
// Compiled on first use (native.py) and called through ctypes (cpu.py); links neither Python nor torch.

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "cpu_numbers.h"

enum { MAX_THREADS = 256 };

typedef struct {                  // StepScalars
    double scale, l2, decay, eps, clip, beta1, beta2, lr;
} Scalars;

typedef struct {                  // a Bucket, or a RoundedBucket
    int64_t tensors;
    const int64_t *table;         // a row a tensor: the addresses of theta, g, m, v, the number of elements; if rounded
                                  // also the address of the scales, the number of columns, and the key of random bits
    int32_t row_length;
    int32_t param_type, grad_type;  // rows of TYPES in cpu.py
    int32_t bits, block_size, round_param;  // if rounded: bits of the moments; else the bits are 0
    Scalars scalars;
} Bucket;

static int64_t chunks_of(int64_t elements, int64_t chunk) { return (elements + chunk - 1) / chunk; }

// -- the update of a stretch of one tensor --------------------------------------------------------------------------

// x, or 0 where `keep` is 0: by bits, since compilers make two branches of a condition, each with all that follows.
static inline float keep_float(int keep, float x) { return as_float(as_bits(x) & -(uint32_t)keep); }
static inline double keep_double(int keep, double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    bits &= -(uint64_t)keep;
    memcpy(&x, &bits, 8);
    return x;
}

#define NUMBERS(REAL)                                                                                         \
    const REAL scale = (REAL)s->scale, l2 = (REAL)s->l2, decay = (REAL)s->decay, eps = (REAL)s->eps,          \
               clip = (REAL)s->clip, rest1 = (REAL)(1 - s->beta1), beta2 = (REAL)s->beta2,                    \
               rest2 = (REAL)(1 - s->beta2), lr = (REAL)s->lr;                                                \
    const int coupled = l2 != 0;

// The new theta, m and v from theta, g, m and v. Comparisons instead of fmin and fmax, which would lose NaN. `l2` is
// compared outside the loop: 0*inf is NaN. A root is 0 where v is, and asking it instead saves reading v again.
// SEEN is that, or 1 where all of v is known to be above zero.
#define EQUATIONS(REAL, SQRT, SEEN)                                                                           \
    g = g * scale;                                                               /* (1) */                    \
    if (coupled) g = g + l2 * theta;                                                                          \
    REAL root = SQRT(v);                                                                                      \
    int seen = SEEN;                                                             /* (2) */                    \
    theta = theta * decay;                                                       /* (3) */                    \
    REAL u = g / (root < eps ? eps : root);                                      /* (4) */                    \
    u = u < -clip ? -clip : u;                                                                                \
    u = u > clip ? clip : u;                                                                                  \
    u = keep_##REAL(seen, u);                                                                                 \
    m = m + rest1 * (u - m);                                                     /* (5) */                    \
    theta = theta - lr * m;                                                      /* (6) */                    \
    REAL next = beta2 * v + rest2 * g * g, first = g * g;                        /* (7) */                    \
    v = seen ? next : first;

#define UPDATE(NAME, P, G, REAL, SQRT)                                                                        \
    static void NAME##_stretch(P *restrict p, const G *restrict gs, REAL *restrict ms, REAL *restrict vs,     \
                               int64_t n, const Scalars *s) {                                                 \
        NUMBERS(REAL)                                                                                         \
        _Pragma("GCC unroll 4") for (int64_t i = 0; i < n; i++) {                                             \
            REAL theta = load_##P(p[i]), g = load_##G(gs[i]), m = ms[i], v = vs[i];                           \
            EQUATIONS(REAL, SQRT, root != 0)                                                                     \
            p[i] = store_##P(theta);                                                                          \
            ms[i] = m;                                                                                        \
            vs[i] = v;                                                                                        \
        }                                                                                                     \
    }                                                                                                         \
    static void NAME(char *param, const char *grad, char *exp_avg, char *exp_avg_sq, int64_t start,           \
                     int64_t n, const Scalars *s) {                                                           \
        NAME##_stretch((P *)param + start, (const G *)grad + start, (REAL *)exp_avg + start,                  \
                       (REAL *)exp_avg_sq + start, n, s);                                                     \
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

#include "cpu_rounded.h"

static void load_theta(float *restrict out, const char *p, int32_t type, int64_t n) {
    if (type == 1)
        for (int64_t i = 0; i < n; i++) out[i] = load_bfloat16(((const bfloat16 *)p)[i]);
    else
        for (int64_t i = 0; i < n; i++) out[i] = load_float16(((const float16 *)p)[i]);
}

static void store_theta(char *p, const float *restrict theta, int32_t type, int64_t n) {
    if (type == 1)
        for (int64_t i = 0; i < n; i++) ((bfloat16 *)p)[i] = store_bfloat16(theta[i]);
    else
        for (int64_t i = 0; i < n; i++) ((float16 *)p)[i] = store_float16(theta[i]);
}

// Reads codes, writes floats: the new m and v, whose largest and smallest the grids of the codes depend on.
// Where no code is special (v never observed, or something not finite), PLAIN, nothing is asked of single elements.
#define UPDATE_CODES(NAME, G, PLAIN)                                                                          \
    static Range NAME(float *restrict p, const G *restrict gs, const uint32_t *restrict m_codes,              \
                      const uint32_t *restrict v_codes, const float *restrict scales, float *restrict ms,     \
                      float *restrict vs, int64_t n, const Scalars *s) {                                      \
        NUMBERS(float)                                                                                        \
        const float m_scale = scales[0], v_scale = scales[1];                                                 \
        const int shift = 23 - (int)scales[2];                                                                \
        uint32_t most_m = 0, most_v = 0, least_v = UINT32_MAX;                                                \
        for (int64_t i = 0; i < n; i++) {                                                                     \
            float theta = p[i], g = load_##G(gs[i]), m = decode_exp_avg(m_codes[i], m_scale, PLAIN),          \
                  v = decode_exp_avg_sq(v_codes[i], v_scale, shift, PLAIN);                                   \
            EQUATIONS(float, sqrtf, PLAIN ? 1 : root != 0)                                                    \
            p[i] = theta;                                                                                     \
            ms[i] = m;                                                                                        \
            vs[i] = v;                                                                                        \
            uint32_t of_m = as_bits(m) & 0x7fffffff, of_v = as_bits(v);                                       \
            most_m = of_m > most_m ? of_m : most_m;                                                           \
            most_v = of_v > most_v ? of_v : most_v;                                                           \
            least_v = of_v < least_v ? of_v : least_v;                                                        \
        }                                                                                                     \
        return (Range){most_m, most_v, least_v};                                                              \
    }

UPDATE_CODES(update_codes_float, float, 0)
UPDATE_CODES(update_codes_bfloat16, bfloat16, 0)
UPDATE_CODES(update_codes_float16, float16, 0)
UPDATE_CODES(update_plain_codes_float, float, 1)
UPDATE_CODES(update_plain_codes_bfloat16, bfloat16, 1)
UPDATE_CODES(update_plain_codes_float16, float16, 1)

#define CALL(NAME, G) NAME(theta, (const G *)at->g, wide_m, wide_v, at->scales, m, v, at->n, s)

static Range update_codes(int32_t grad_type, float *theta, const Block *at, float *m, float *v, const Scalars *s) {
    const uint8_t *ms = (const uint8_t *)at->m, *vs = (const uint8_t *)at->v;
    _Alignas(64) uint32_t wide_m[LARGEST_BLOCK], wide_v[LARGEST_BLOCK];
    widen(wide_m, ms, at->n);
    widen(wide_v, vs, at->n);
    if (no_code_is_special(ms, vs, at->n))
        switch (grad_type) {
        case 0: return CALL(update_plain_codes_float, float);
        case 1: return CALL(update_plain_codes_bfloat16, bfloat16);
        default: return CALL(update_plain_codes_float16, float16);
        }
    switch (grad_type) {
    case 0: return CALL(update_codes_float, float);
    case 1: return CALL(update_codes_bfloat16, bfloat16);
    default: return CALL(update_codes_float16, float16);
    }
}

static void update_rounded(const Bucket *bucket, const Block *at) {
    _Alignas(64) float copy[LARGEST_BLOCK], m[LARGEST_BLOCK], v[LARGEST_BLOCK];
    const int32_t type = bucket->param_type, bits = bucket->bits;
    const int64_t n = at->n;
    float *theta = type == 0 ? (float *)at->theta : copy;
    if (type != 0) load_theta(theta, at->theta, type, n);
    if (bits == 8) {
        Range range = update_codes(bucket->grad_type, theta, at, m, v, &bucket->scalars);
        encode(at, m, v, range, (float)bucket->scalars.beta2);
    } else {
        char *ms = bits == 32 ? at->m : (char *)m, *vs = bits == 32 ? at->v : (char *)v;
        if (bits == 16) {
            decode_bfloat16(m, (const uint16_t *)at->m, n);
            decode_bfloat16(v, (const uint16_t *)at->v, n);
        }
        UPDATES[0][bucket->grad_type]((char *)theta, at->g, ms, vs, 0, n, &bucket->scalars);
        if (bits == 16) encode_bfloat16_moments(at, m, v);
    }
    if (bucket->round_param) store_stochastically(at, theta);
    else if (type != 0) store_theta(at->theta, theta, type, n);
}

// Blocks `start` to `start + count` of a tensor, which is cut between its rows, and each row in blocks.
static void update_blocks(const Bucket *bucket, const int64_t *row, int64_t start, int64_t count) {
    static const int64_t sizes[4] = {4, 2, 2, 8};
    const int64_t columns = row[6], of_row = chunks_of(columns, bucket->block_size);
    const int64_t p_size = sizes[bucket->param_type], g_size = sizes[bucket->grad_type], m_size = bucket->bits / 8;
    for (int64_t b = start; b < start + count; b++) {
        int64_t first = b % of_row * bucket->block_size, left = columns - first, place = b / of_row * columns + first;
        Block at = {(char *)row[0] + place * p_size, (const char *)row[1] + place * g_size,
                    (char *)row[2] + place * m_size, (char *)row[3] + place * m_size,
                    bucket->bits == 8 ? (float *)row[5] + 3 * b : 0,
                    left < bucket->block_size ? left : bucket->block_size, (uint32_t)place, (uint32_t)row[7]};
        update_rounded(bucket, &at);
    }
}

// -- threads --------------------------------------------------------------------------------------------------------

typedef struct {
    const Bucket *buckets;
    int64_t count;
    int64_t chunk;                // elements that a thread takes at a time
    atomic_llong next;            // the first chunk that nobody has taken
} Step;

// What a tensor is cut into chunks of: elements, or, if it is rounded, blocks.
static int64_t units_of(const Bucket *bucket, const int64_t *row) {
    if (bucket->bits == 0) return row[4];
    return row[6] == 0 ? 0 : row[4] / row[6] * chunks_of(row[6], bucket->block_size);
}

static int64_t units_a_chunk(const Bucket *bucket, int64_t chunk) {
    return bucket->bits == 0 ? chunk : chunks_of(chunk, bucket->block_size);
}

// Long ones, which memory is fastest with, but enough of them for all threads to end together.
static int64_t chunk_for(int64_t elements, int64_t threads) {
    int64_t chunk = elements / (16 * threads) / 1024 * 1024;
    return chunk < 1 << 14 ? 1 << 14 : chunk > 1 << 18 ? 1 << 18 : chunk;
}

static void *work(void *argument) {
    Step *step = argument;
    int64_t before = 0;           // chunks of the tensors that lie behind
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

// Updates all buckets with up to `threads` threads, the caller's among them. They end with the call: nothing is left
// that a fork could break. Where no more can be started those that run do all the work.
__attribute__((visibility("default")))
void adopt_step(const Bucket *buckets, int64_t count, int64_t threads) {
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
    pthread_t started[MAX_THREADS];
    int64_t running = 0;
    while (running + 1 < threads && pthread_create(&started[running], 0, work, &step) == 0) running++;
    work(&step);
    while (running > 0) pthread_join(started[--running], 0);
}
