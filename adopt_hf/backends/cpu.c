// ADOPT in one pass over memory: every element is read, updated and written once. The equations are those of
// adopt_hf/algorithm.py, with its numbers, operation by operation, so that results equal those of the definition.
// Compiled on first use (native.py) and called through ctypes (cpu.py); links neither Python nor torch.

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { MAX_THREADS = 256 };

typedef struct {                  // StepScalars
    double scale, l2, decay, eps, clip, beta1, beta2, lr;
} Scalars;

typedef struct {                  // a Bucket
    int64_t tensors;
    const int64_t *table;         // five numbers a tensor: the addresses of theta, g, m, v, and the number of elements
    int32_t param_type, grad_type;  // rows of TYPES in cpu.py
    Scalars scalars;
} Bucket;

// -- 16-bit numbers -------------------------------------------------------------------------------------------------

typedef struct { uint16_t bits; } bfloat16;
typedef struct { uint16_t bits; } float16;

static inline float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static inline float load_bfloat16(bfloat16 x) { return as_float((uint32_t)x.bits << 16); }

static inline bfloat16 store_bfloat16(float x) {  // to nearest, ties to even
    uint32_t bits = as_bits(x);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bfloat16){(uint16_t)(x != x ? 0x7fc0 : rounded)};
}

static inline float load_float16(float16 x) {
    uint32_t size = (uint32_t)(x.bits & 0x7fff) << 13, sign = (uint32_t)(x.bits & 0x8000) << 16;
    uint32_t normal = size + 0x38000000;                                   // the exponent's bias of 15 becomes 127
    uint32_t subnormal = as_bits(as_float(size + 0x38800000) - 0x1p-14f);  // no float that a processor might flush
    return as_float(sign | (size >= 0x0f800000 ? size | 0x7f800000 : size < 0x00800000 ? subnormal : normal));
}

static inline float16 store_float16(float x) {  // to nearest, ties to even
    uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t normal = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
    uint32_t subnormal = as_bits(as_float(size) + 0.5f) - 0x3f000000;  // 0.5 has its last place at float16's smallest
    uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;              // NaN, or beyond the largest: inf
    return (float16){(uint16_t)(sign | (size >= 0x47800000 ? large : size < 0x38800000 ? subnormal : normal))};
}

static inline float load_float(float x) { return x; }
static inline float store_float(float x) { return x; }
static inline double load_double(double x) { return x; }
static inline double store_double(double x) { return x; }

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

// Comparisons instead of fmin and fmax, which would lose NaN. `l2` is compared outside the loop: 0*inf is NaN. A root is
// 0 where v is, and asking it instead saves reading v again.
#define UPDATE(NAME, P, G, REAL, SQRT)                                                                        \
    static void NAME##_stretch(P *restrict p, const G *restrict gs, REAL *restrict ms, REAL *restrict vs,     \
                               int64_t n, const Scalars *s) {                                                 \
        const REAL scale = (REAL)s->scale, l2 = (REAL)s->l2, decay = (REAL)s->decay, eps = (REAL)s->eps,      \
                   clip = (REAL)s->clip, rest1 = (REAL)(1 - s->beta1), beta2 = (REAL)s->beta2,                \
                   rest2 = (REAL)(1 - s->beta2), lr = (REAL)s->lr;                                            \
        const int coupled = l2 != 0;                                                                          \
        _Pragma("GCC unroll 4") for (int64_t i = 0; i < n; i++) {                                             \
            REAL theta = load_##P(p[i]), g = load_##G(gs[i]), m = ms[i], v = vs[i];                           \
            g = g * scale;                                                       /* (1) */                    \
            if (coupled) g = g + l2 * theta;                                                                  \
            REAL root = SQRT(v);                                                                              \
            int seen = root != 0;                                                /* (2) */                    \
            theta = theta * decay;                                               /* (3) */                    \
            REAL u = g / (root < eps ? eps : root);                              /* (4) */                    \
            u = u < -clip ? -clip : u;                                                                        \
            u = u > clip ? clip : u;                                                                          \
            u = keep_##REAL(seen, u);                                                                         \
            m = m + rest1 * (u - m);                                             /* (5) */                    \
            theta = theta - lr * m;                                              /* (6) */                    \
            REAL next = beta2 * v + rest2 * g * g, first = g * g;                /* (7) */                    \
            p[i] = store_##P(theta);                                                                          \
            ms[i] = m;                                                                                        \
            vs[i] = seen ? next : first;                                                                      \
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

// -- threads --------------------------------------------------------------------------------------------------------

typedef struct {
    const Bucket *buckets;
    int64_t count;
    int64_t chunk;                // elements that a thread takes at a time
    atomic_llong next;            // the first chunk that nobody has taken
} Step;

static int64_t chunks_of(int64_t elements, int64_t chunk) { return (elements + chunk - 1) / chunk; }

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
        for (int64_t i = 0; i < bucket->tensors; i++) {
            const int64_t *row = bucket->table + 5 * i;
            int64_t elements = row[4], chunks = chunks_of(elements, step->chunk);
            while (chunk < before + chunks) {
                int64_t start = (chunk - before) * step->chunk, left = elements - start;
                update((char *)row[0], (const char *)row[1], (char *)row[2], (char *)row[3], start,
                       left < step->chunk ? left : step->chunk, &bucket->scalars);
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
        for (int64_t i = 0; i < buckets[b].tensors; i++) elements += buckets[b].table[5 * i + 4];
    Step step = {buckets, count, chunk_for(elements, threads), 0};
    for (int64_t b = 0; b < count; b++)
        for (int64_t i = 0; i < buckets[b].tensors; i++) chunks += chunks_of(buckets[b].table[5 * i + 4], step.chunk);
    if (threads > chunks) threads = chunks;
    pthread_t started[MAX_THREADS];
    int64_t running = 0;
    while (running + 1 < threads && pthread_create(&started[running], 0, work, &step) == 0) running++;
    work(&step);
    while (running > 0) pthread_join(started[--running], 0);
}
