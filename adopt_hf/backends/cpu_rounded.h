// What is kept in 8 or 16 bits, or rounded stochastically: the formats of adopt_hf/quantization.py and the random bits of
// adopt_hf/rounding.py, operation by operation. All of it works on pieces that stay in the first cache.

enum { LARGEST_BLOCK = 2048 };
enum { ONE = 0x3f800000, NOT_FINITE = 0x7f800000, TINY = 0x0d800000 };  // bits of 1, inf and 2^-100
enum { LAST = 253, V_INF = 254, V_NAN = 255, FEWEST_BITS = 2, MOST_BITS = 5 };
enum { M_SHIFT = 19, M_NOT_FINITE = 127 };
static const float M_TOP = 223;

typedef struct {                  // where the elements of a block lie
    char *theta;
    const char *g;
    char *m, *v;
    float *scales;                // of m, of v, and the bits of v
    int64_t n;
    uint32_t place, key;          // of the random bits
} Block;

typedef struct {                  // as bits: the largest |m|, the largest v and the smallest
    uint32_t most_m, most_v, least_v;
} Range;

static inline uint32_t mixed(uint32_t x) {
    x *= 0x7feb352d;
    return x ^ x >> 15;
}

static inline uint32_t random_bits(const Block *at, int64_t i) { return mixed((at->place + (uint32_t)i) ^ at->key); }
static inline uint32_t more_bits(uint32_t x) { return mixed(x + 0x9e3779b9); }

// -- bfloat16 ---------------------------------------------------------------------------------------------------------

static inline uint16_t stochastic_bfloat16(float x, uint32_t random) {  // of which the lower 16 bits are used
    uint32_t bits = as_bits(x), rounded = (bits + (random & 0xffff)) >> 16, other = store_bfloat16(x).bits;
    return (uint16_t)((bits & 0x7fffffff) < NOT_FINITE ? rounded : other);
}

static void store_stochastically(const Block *at, const float *restrict theta) {
    uint16_t *restrict p = (uint16_t *)at->theta;
    const Block b = *at;
    for (int64_t i = 0; i < b.n; i++) p[i] = stochastic_bfloat16(theta[i], more_bits(random_bits(&b, i)));
}

static void encode_bfloat16_moments(const Block *at, const float *restrict m, const float *restrict v) {
    uint16_t *restrict ms = (uint16_t *)at->m, *restrict vs = (uint16_t *)at->v;
    const Block b = *at;
    for (int64_t i = 0; i < b.n; i++) {
        uint32_t random = random_bits(&b, i), of_v = stochastic_bfloat16(v[i], random >> 16);
        ms[i] = stochastic_bfloat16(m[i], random);
        vs[i] = (uint16_t)(of_v | ((v[i] > 0) & (of_v == 0)));  // above zero it does not become zero
    }
}

static void decode_bfloat16(float *restrict out, const uint16_t *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = as_float((uint32_t)x[i] << 16);
}

// -- 8 bits -----------------------------------------------------------------------------------------------------------

static int no_code_is_special(const uint8_t *restrict ms, const uint8_t *restrict vs, int64_t n) {
    uint8_t special = 0;
    for (int64_t i = 0; i < n; i++) special |= ((ms[i] & 0x7f) == M_NOT_FINITE) | ((uint8_t)(vs[i] - 1) >= LAST);
    return !special;
}

// Codes go to words and back in loops of their own: with bytes among its numbers a loop would work on 64 elements at
// once, and have no registers left.
static void widen(uint32_t *restrict words, const uint8_t *restrict codes, int64_t n) {
    for (int64_t i = 0; i < n; i++) words[i] = codes[i];
}

static void narrow(uint8_t *restrict codes, const uint32_t *restrict words, int64_t n) {
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)words[i];
}

static inline float decode_exp_avg(uint32_t code, float scale, int plain) {
    uint32_t q = code & 0x7f, size = as_bits((as_float(ONE + (q << M_SHIFT)) - 1.0f) * scale);
    if (!plain) size = q == M_NOT_FINITE ? 0x7fc00000 : size;
    return as_float(size | (code & 0x80) << 24);
}

static inline float decode_exp_avg_sq(uint32_t q, float scale, int shift, int plain) {
    uint32_t word = as_bits(as_float(ONE - (1u << shift) + (q << shift)) * scale);
    if (plain) return as_float(word);
    word = q >= V_INF ? NOT_FINITE + (q - V_INF) : word;
    return as_float(word & -(uint32_t)(q != 0));
}

// The range of what is finite, and of v what is above zero: the rest has codes of its own.
static Range finite_range(const float *restrict m, const float *restrict v, int64_t n) {
    uint32_t most_m = 0, most_v = 0, below = UINT32_MAX;  // what is before the smallest v above zero
    for (int64_t i = 0; i < n; i++) {
        uint32_t of_m = as_bits(m[i]) & 0x7fffffff, of_v = as_bits(v[i]);
        of_m &= -(uint32_t)(of_m < NOT_FINITE);
        of_v &= -(uint32_t)(of_v < NOT_FINITE);
        most_m = of_m > most_m ? of_m : most_m;
        most_v = of_v > most_v ? of_v : most_v;
        below = of_v - 1 < below ? of_v - 1 : below;
    }
    return (Range){most_m, most_v, below < NOT_FINITE ? below + 1 : NOT_FINITE};
}

// Moves the scale of v by a power of two, and chooses the bits, as the new v ask for.
static void move_grid(float *scale, float *bits, float beta2, uint32_t most, uint32_t least) {
    int32_t high = (int32_t)(most >> 23), octaves = high - (int32_t)(least >> 23) + 2, chosen = FEWEST_BITS;
    for (int32_t more = FEWEST_BITS + 1; more <= MOST_BITS; more++)
        if (octaves + (more > (int32_t)*bits) <= (LAST - 2) >> more) chosen = more;
    int64_t old = as_bits(*scale * beta2);
    int64_t moved = old + (high + 1 - ((LAST - 2) >> chosen) - (old >> 23)) * (1 << 23);
    int64_t grid = high > 0 ? moved : old;
    *scale = as_float(grid < TINY ? TINY : (uint32_t)grid);
    *bits = (float)chosen;
}

static inline uint32_t code_of_exp_avg(float m, float inverse, uint32_t random) {
    float size = as_float(as_bits(m) & 0x7fffffff);
    uint32_t q = (as_bits(1.0f + size * inverse) - ONE + ((random & 0x7ff) << (M_SHIFT - 11))) >> M_SHIFT;
    return q | (as_bits(m) >> 24 & 0x80);
}

static inline uint32_t code_of_exp_avg_sq(float v, float inverse, uint32_t random, int shift) {
    float over_scale = v * inverse;
    over_scale = over_scale < 1.0f ? 1.0f : over_scale;
    return (as_bits(over_scale) - ONE + (1u << shift) + (random >> (32 - shift))) >> shift;
}

static void encode(const Block *at, const float *restrict m, const float *restrict v, Range range, float beta2) {
    _Alignas(64) uint32_t ms[LARGEST_BLOCK], vs[LARGEST_BLOCK];
    const Block b = *at;
    const int special = range.most_m >= NOT_FINITE || range.most_v >= NOT_FINITE || range.least_v == 0;
    if (special) range = finite_range(m, v, b.n);
    move_grid(b.scales + 1, b.scales + 2, beta2, range.most_v, range.least_v);
    const int some = range.most_m >= TINY, shift = 23 - (int)b.scales[2];
    const float m_inverse = some ? 1.0f / as_float(range.most_m) * M_TOP : 0, v_inverse = 1.0f / b.scales[1];
    b.scales[0] = some ? as_float(range.most_m) * (float)(1.0 / 223) : 0;
    for (int64_t i = 0; i < b.n; i++) {
        uint32_t random = random_bits(&b, i);
        ms[i] = code_of_exp_avg(m[i], m_inverse, random);
        vs[i] = code_of_exp_avg_sq(v[i], v_inverse, random, shift);
    }
    if (special) {
        for (int64_t i = 0; i < b.n; i++) {
            uint32_t word = as_bits(v[i]), of_v = word > NOT_FINITE ? V_NAN : word == NOT_FINITE ? V_INF : 0;
            uint32_t of_m = M_NOT_FINITE | (as_bits(m[i]) >> 24 & 0x80);
            ms[i] = (as_bits(m[i]) & 0x7fffffff) < NOT_FINITE ? ms[i] : of_m;
            vs[i] = word == 0 || word >= NOT_FINITE ? of_v : vs[i];
        }
    }
    narrow((uint8_t *)at->m, ms, b.n);
    narrow((uint8_t *)at->v, vs, b.n);
}
