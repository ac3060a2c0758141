// Moments of 8 or 16 bits, and stochastic rounding: the formats of adopt_hf/state/quantization.py and the random bits
// of adopt_hf/state/rounding.py, operation by operation. All functions work on pieces that stay in the first cache.

enum { LARGEST_BLOCK = 2048 };
enum { ONE = 0x3f800000, NOT_FINITE = 0x7f800000, TINY = 0x0d800000 };  // bits of 1, inf and 2^-100
enum { LAST = 253, V_INF = 254, V_NAN = 255, FEWEST_BITS = 2, MOST_BITS = 5 };
enum { M_SHIFT = 19, M_NOT_FINITE = 127 };
static const float M_TOP = 223;

typedef struct {                  // the addresses of a block
    char *theta;
    const char *g;
    char *m, *v;
    float *scales;                // scale of m, scale of v, and the bits of v
    int64_t n;
    uint32_t place, key;          // of the random bits
} Block;

// The possible moments of a block. UNSEEN: v may be 0, never observed. ANYTHING: moments may also be not finite.
enum { ANYTHING, UNSEEN, ABOVE_ZERO };

// The bits of one block's largest |m| and v, smallest v, and the predecessor of its smallest positive v.
typedef struct { words most_m, most_v, least_v, below_v; } Extremes;

enum { TOGETHER = 8 };            // blocks that are encoded together

typedef struct {                  // the extremes of each block
    uint32_t most_m[TOGETHER], most_v[TOGETHER], least_v[TOGETHER], below_v[TOGETHER];
} Ranges;

typedef struct {                  // the numbers that encode each block
    float m_inverse[TOGETHER], v_inverse[TOGETHER];
    int32_t shift[TOGETHER], kind[TOGETHER];
} Grids;

static inline int64_t whole_groups(int64_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

#define MIXED(NAME, T) static inline T NAME(T x) { x *= 0x7feb352d; return x ^ x >> 15; }
MIXED(mixed, uint32_t)
MIXED(mixed_words, words)

static inline uint32_t random_bits(const Block *at, int64_t i) { return mixed((at->place + (uint32_t)i) ^ at->key); }
// A second number for each random number x.
#define MORE(x) ((x) + 0x9e3779b9)
static inline uint32_t more_bits(uint32_t x) { return mixed(MORE(x)); }
static inline words more_words(words x) { return mixed_words(MORE(x)); }

// -- bfloat16 ---------------------------------------------------------------------------------------------------------

static inline uint16_t stochastic_bfloat16(float x, uint32_t random) {  // uses the lower 16 bits of `random`
    uint32_t bits = as_bits(x), rounded = (bits + (random & 0xffff)) >> 16, other = store_bfloat16(x).bits;
    return (uint16_t)((bits & 0x7fffffff) < NOT_FINITE ? rounded : other);
}

// Elements from i on, one by one. Numbers that are not finite are not rounded.
static void store_stochastically_from(int64_t i, const Block *at, const float *theta) {
    uint16_t *p = (uint16_t *)at->theta;
    for (; i < at->n; i++) p[i] = stochastic_bfloat16(theta[i], more_bits(random_bits(at, i)));
}

static void encode_bfloat16_moments_from(int64_t i, const Block *at, const float *m, const float *v) {
    uint16_t *ms = (uint16_t *)at->m, *vs = (uint16_t *)at->v;
    for (; i < at->n; i++) {
        uint32_t random = random_bits(at, i), of_v = stochastic_bfloat16(v[i], random >> 16);
        ms[i] = stochastic_bfloat16(m[i], random);
        vs[i] = (uint16_t)(of_v | ((v[i] > 0) & (of_v == 0)));  // a positive v stays positive
    }
}

enum { PAIR = 2 * LANES };

static void store_stochastically(const Block *at, const float *theta) {
    const words key = all_words(at->key);
    const int64_t n = at->n / PAIR * PAIR;
    words places = first_words() + at->place, most = {0};
    for (int64_t i = 0; i < n; i += PAIR) {
        words x[2];
        for (int k = 0; k < 2; k++) {
            words bits = (words)load_floats(theta + i + LANES * k);
            most = larger_words(most, bits & 0x7fffffff);
            x[k] = bits + (more_words(mixed_words(places ^ key)) & 0xffff);
            places += LANES;
        }
        store_upper_halves((uint16_t *)at->theta + i, x[0], x[1]);
    }
    store_stochastically_from(largest(most) < NOT_FINITE ? n : 0, at, theta);
}

static void encode_bfloat16_moments(const Block *at, const float *m, const float *v) {
    const words key = all_words(at->key);
    const int64_t n = at->n / PAIR * PAIR;
    words places = first_words() + at->place, most = {0};
    for (int64_t i = 0; i < n; i += PAIR) {
        words of_m[2], of_v[2];
        for (int k = 0; k < 2; k++) {
            words random = mixed_words(places ^ key), bits_m = (words)load_floats(m + i + LANES * k),
                  bits_v = (words)load_floats(v + i + LANES * k);
            most = larger_words(most, larger_words(bits_m & 0x7fffffff, bits_v));
            const words least = smaller_words(bits_v, all_words(1)) << 16;  // bound of a positive v
            of_m[k] = bits_m + (random & 0xffff);
            of_v[k] = larger_words(bits_v + (random >> 16), least);
            places += LANES;
        }
        store_upper_halves((uint16_t *)at->m + i, of_m[0], of_m[1]);
        store_upper_halves((uint16_t *)at->v + i, of_v[0], of_v[1]);
    }
    encode_bfloat16_moments_from(largest(most) < NOT_FINITE ? n : 0, at, m, v);
}

static void decode_bfloat16(float *restrict out, const uint16_t *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = as_float((uint32_t)x[i] << 16);
}

// -- 8 bits -----------------------------------------------------------------------------------------------------------

INLINE int are_finite_exp_avgs(const uint8_t *codes, int64_t n) { return all_within(codes, n, 0x7f, 0, M_NOT_FINITE); }
INLINE int are_above_zero(const uint8_t *codes, int64_t n) { return all_within(codes, n, 0xff, 1, LAST); }
INLINE int are_finite_exp_avg_sqs(const uint8_t *codes, int64_t n) { return all_within(codes, n, 0xff, 0, V_INF); }

static inline int kind_of_codes(const uint8_t *m_codes, const uint8_t *v_codes, int64_t n) {
    if (!are_finite_exp_avgs(m_codes, n)) return ANYTHING;
    if (are_above_zero(v_codes, n)) return ABOVE_ZERO;
    return are_finite_exp_avg_sqs(v_codes, n) ? UNSEEN : ANYTHING;
}

INLINE floats decode_exp_avg(const uint8_t *codes, floats scale, int kind) {
    words code = widened_with_sign(codes), q = code << M_SHIFT & (127u << M_SHIFT);
    words size = (words)above_one_times((floats)(ONE + q), scale);
    if (kind == ANYTHING) size = select_words((whole)(q == (uint32_t)M_NOT_FINITE << M_SHIFT), all_words(0x7fc00000), size);
    return (floats)(size | (code & 0x80000000));
}

INLINE floats decode_exp_avg_sq(const uint8_t *codes, floats scale, int shift, int kind) {
    words q = widened(codes), word = (words)((floats)(ONE - (1u << shift) + (q << shift)) * scale);
    if (kind == ABOVE_ZERO) return (floats)word;
    if (kind == ANYTHING) word = select_words((whole)(q >= V_INF), NOT_FINITE + (q - V_INF), word);
    return (floats)(word & (words)(q != 0));
}

// The range of the finite moments. inf and NaN have their own codes.
static void find_finite_range(const float *restrict m, const float *restrict v, int64_t n, Ranges *ranges, int which) {
    uint32_t most_m = 0, most_v = 0, below = UINT32_MAX;
    for (int64_t i = 0; i < n; i++) {
        uint32_t of_m = as_bits(m[i]) & 0x7fffffff, of_v = as_bits(v[i]);
        of_m &= -(uint32_t)(of_m < NOT_FINITE);
        of_v &= -(uint32_t)(of_v < NOT_FINITE);
        most_m = of_m > most_m ? of_m : most_m;
        most_v = of_v > most_v ? of_v : most_v;
        below = of_v - 1 < below ? of_v - 1 : below;
    }
    ranges->most_m[which] = most_m;
    ranges->most_v[which] = most_v;
    ranges->below_v[which] = below;
}

// Moves the scale of v by a power of two, and chooses the bits, as the new v require.
static inline void move_grid(float *scale, float *bits, float beta2, uint32_t most, uint32_t least) {
    int32_t high = (int32_t)(most >> 23), octaves = high - (int32_t)(least >> 23) + 2, chosen = FEWEST_BITS;
    for (int32_t more = FEWEST_BITS + 1; more <= MOST_BITS; more++)
        chosen = octaves + ((float)more > *bits) <= (LAST - 2) >> more ? more : chosen;
    int32_t old = (int32_t)as_bits(*scale * beta2);
    int32_t moved = (old & 0x7fffff) + (high + 1 - ((LAST - 2) >> chosen)) * (1 << 23);
    int32_t grid = high > 0 ? moved : old;
    *scale = as_float((uint32_t)(grid < TINY ? TINY : grid));
    *bits = (float)chosen;
}

// Sets the scales of blocks. Their new moments are in m and v, `stride` elements apart.
static Grids moved_grids(const Block *blocks, int count, const float *m, const float *v, int64_t stride,
                         Ranges *ranges, float beta2) {
    Grids grids;
    float m_scale[TOGETHER], v_scale[TOGETHER], bits[TOGETHER];
    for (int b = 0; b < TOGETHER; b++) {
        const float *scales = blocks[b < count ? b : 0].scales;
        v_scale[b] = scales[1];
        bits[b] = scales[2];
        grids.kind[b] = ranges->least_v[b] == 0 ? UNSEEN : ABOVE_ZERO;
        if (ranges->most_m[b] >= NOT_FINITE || ranges->most_v[b] >= NOT_FINITE) grids.kind[b] = ANYTHING;
    }
    for (int b = 0; b < count; b++)
        if (grids.kind[b] == ANYTHING)
            find_finite_range(m + stride * b, v + stride * b, whole_groups(blocks[b].n), ranges, b);
    for (int b = 0; b < TOGETHER; b++) {
        const int some = ranges->most_m[b] >= TINY;
        const float most = as_float(ranges->most_m[b]);
        const float inverse = 1.0f / most * M_TOP, scale = most * (float)(1.0 / 223);
        grids.m_inverse[b] = some ? inverse : 0;
        m_scale[b] = some ? scale : 0;
    }
    for (int b = 0; b < TOGETHER; b++) {
        const uint32_t below = ranges->below_v[b], least = below < NOT_FINITE ? below + 1 : NOT_FINITE;
        move_grid(v_scale + b, bits + b, beta2, ranges->most_v[b], least);
        grids.v_inverse[b] = 1.0f / v_scale[b];
        grids.shift[b] = 23 - (int32_t)bits[b];
    }
    for (int b = 0; b < count; b++) {
        blocks[b].scales[0] = m_scale[b];
        blocks[b].scales[1] = v_scale[b];
        blocks[b].scales[2] = bits[b];
    }
    return grids;
}

INLINE words code_of_exp_avg(floats m, float inverse, words random) {  // without its sign
    floats size = (floats)((words)m & 0x7fffffff);
    return ((words)(1.0f + size * inverse) - ONE + ((random & 0x7ff) << (M_SHIFT - 11))) >> M_SHIFT;
}

INLINE words code_of_exp_avg_sq(floats v, float inverse, words random, int shift) {
    floats over_scale = larger_floats(v * inverse, all_floats(1.0f));
    return ((words)over_scale - ONE + (1u << shift) + (random >> (32 - shift))) >> shift;
}

INLINE void encode_if(const Block *at, const float *restrict m, const float *restrict v, const Grids *grids, int which,
                      int kind) {
    uint8_t m_copy[LARGEST_BLOCK], v_copy[LARGEST_BLOCK];
    const float m_inverse = grids->m_inverse[which], v_inverse = grids->v_inverse[which];
    const int shift = grids->shift[which], is_whole = at->n == whole_groups(at->n);
    uint8_t *m_codes = is_whole ? (uint8_t *)at->m : m_copy, *v_codes = is_whole ? (uint8_t *)at->v : v_copy;
    const uint32_t key = at->key;
    words places = first_words() + at->place;
    for (int64_t i = 0; i < at->n; i += GROUP) {
        words of_m[VECTORS], of_v[VECTORS];
        floats ms[VECTORS];
        for (int k = 0; k < VECTORS; k++) {
            words random = mixed_words(places ^ key);
            floats vs = load_floats(v + i + LANES * k);
            ms[k] = load_floats(m + i + LANES * k);
            of_m[k] = code_of_exp_avg(ms[k], m_inverse, random);
            of_v[k] = code_of_exp_avg_sq(vs, v_inverse, random, shift);
            if (kind != ABOVE_ZERO) of_v[k] &= (words)(vs != 0);
            places += LANES;
        }
        store_narrowed_with_sign(m_codes + i, of_m, ms);
        store_narrowed(v_codes + i, of_v);
    }
    if (kind == ANYTHING)
        for (int64_t i = 0; i < at->n; i++) {
            uint32_t word = as_bits(v[i]), of_v = word > NOT_FINITE ? V_NAN : V_INF;
            m_codes[i] = (as_bits(m[i]) & 0x7fffffff) < NOT_FINITE ? m_codes[i] : M_NOT_FINITE;
            v_codes[i] = (uint8_t)(word >= NOT_FINITE ? of_v : v_codes[i]);
        }
    if (!is_whole) {
        memcpy(at->m, m_codes, (size_t)at->n);
        memcpy(at->v, v_codes, (size_t)at->n);
    }
}

static void encode(const Block *at, const float *m, const float *v, const Grids *grids, int which) {
    if (grids->kind[which] == ABOVE_ZERO) encode_if(at, m, v, grids, which, ABOVE_ZERO);
    else if (grids->kind[which] == UNSEEN) encode_if(at, m, v, grids, which, UNSEEN);
    else encode_if(at, m, v, grids, which, ANYTHING);
}
