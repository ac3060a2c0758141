// What is kept in 8 or 16 bits, or rounded stochastically: the formats of adopt_hf/quantization.py and the random bits of
// adopt_hf/rounding.py, operation by operation. All of it works on pieces that stay in the first cache.

enum { LARGEST_BLOCK = 2048 };
enum { ONE = 0x3f800000, NOT_FINITE = 0x7f800000, TINY = 0x0d800000 };  // bits of 1, inf and 2^-100
enum { LAST = 253, V_INF = 254, V_NAN = 255, FEWEST_BITS = 2, MOST_BITS = 5 };
enum { M_SHIFT = 19, M_LAST = 126, M_NOT_FINITE = 127 };
static const float M_TOP = 223;

static inline uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352d;
    x ^= x >> 15;
    x *= 0x846ca68b;
    return x ^ x >> 16;
}

static void random_bits(uint32_t *restrict first, uint32_t *restrict second, uint32_t place, uint32_t key, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = mixed((place + (uint32_t)i) ^ key);
        first[i] = x;
        second[i] = mixed(x + 0x9e3779b9);
    }
}

// -- bfloat16 ---------------------------------------------------------------------------------------------------------

static inline uint16_t stochastic_bfloat16(float x, uint32_t random) {  // of which 16 bits are used
    uint32_t bits = as_bits(x), finite = (bits & 0x7fffffff) < NOT_FINITE;
    return finite ? (uint16_t)((bits + (random & 0xffff)) >> 16) : store_bfloat16(x).bits;
}

static void encode_bfloat16(uint16_t *restrict out, const float *restrict x, const uint32_t *restrict random,
                            int drop, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = stochastic_bfloat16(x[i], random[i] >> drop);
}

static void keep_above_zero(uint16_t *restrict out, const float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] |= (x[i] > 0) & (out[i] == 0);
}

static void decode_bfloat16(float *restrict out, const uint16_t *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = as_float((uint32_t)x[i] << 16);
}

// -- m in 8 bits ------------------------------------------------------------------------------------------------------

static void decode_exp_avg(float *restrict m, const uint8_t *restrict codes, float scale, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t q = codes[i] & 0x7f, sign = (uint32_t)(codes[i] & 0x80) << 24;
        uint32_t size = as_bits((as_float(ONE + (q << M_SHIFT)) - 1.0f) * scale);
        m[i] = as_float((q == M_NOT_FINITE ? 0x7fc00000 : size) | sign);
    }
}

static float encode_exp_avg(uint8_t *restrict codes, const float *restrict m, const uint32_t *restrict random,
                            int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = as_bits(m[i]) & 0x7fffffff;
        size = size < NOT_FINITE ? size : 0;
        most = size > most ? size : most;
    }
    float inverse = most >= TINY ? 1.0f / as_float(most) * M_TOP : 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = as_bits(m[i]) & 0x7fffffff, finite = size < NOT_FINITE;
        uint32_t word = as_bits(1.0f + as_float(size & -finite) * inverse);
        uint32_t q = (word - ONE + (random[i] >> 16 << (M_SHIFT - 16))) >> M_SHIFT;
        q = q > M_LAST ? M_LAST : q;
        codes[i] = (uint8_t)((finite ? q : M_NOT_FINITE) | (m[i] < 0 ? 0x80u : 0));
    }
    return most >= TINY ? as_float(most) * (float)(1.0 / 223) : 0;
}

// -- v in 8 bits ------------------------------------------------------------------------------------------------------

static void decode_exp_avg_sq(float *restrict v, const uint8_t *restrict codes, float scale, float bits, int64_t n) {
    const int shift = 23 - (int)bits;
    for (int64_t i = 0; i < n; i++) {
        uint32_t q = codes[i];
        uint32_t word = as_bits(as_float(ONE + ((q - 1) << shift)) * scale);
        word = q >= V_INF ? NOT_FINITE + (q - V_INF) : word;
        v[i] = as_float(word & -(uint32_t)(q != 0));
    }
}

static void encode_exp_avg_sq(uint8_t *restrict codes, const float *restrict v, const uint32_t *restrict random,
                              float *scale, float *bits, float beta2, int64_t n) {
    uint32_t most = 0, least = NOT_FINITE;
    for (int64_t i = 0; i < n; i++) {
        uint32_t word = as_bits(v[i]);
        word = word >= NOT_FINITE ? 0 : word;
        uint32_t some = word == 0 ? NOT_FINITE : word;
        most = word > most ? word : most;
        least = some < least ? some : least;
    }
    int32_t high = (int32_t)(most >> 23), low = (int32_t)(least >> 23), octaves = high - low + 2, chosen = FEWEST_BITS;
    for (int32_t more = FEWEST_BITS + 1; more <= MOST_BITS; more++)
        if (octaves + (more > (int32_t)*bits) <= (LAST - 1) >> more) chosen = more;
    int64_t old = as_bits(*scale * beta2);
    int64_t moved = old + (high + 1 - ((LAST - 1) >> chosen) - (old >> 23)) * (1 << 23);
    int64_t grid = high > 0 ? moved : old;
    *scale = as_float(grid < TINY ? TINY : (uint32_t)grid);
    *bits = (float)chosen;

    const float inverse = 1.0f / *scale;
    const int shift = 23 - chosen;
    for (int64_t i = 0; i < n; i++) {
        float x = v[i], over_scale = x * inverse;
        over_scale = over_scale < 1.0f ? 1.0f : over_scale;
        uint32_t q = ((as_bits(over_scale) - ONE + (random[i] >> (32 - shift))) >> shift) + 1;
        q = q > LAST ? LAST : q;
        uint32_t word = as_bits(x), special = word > NOT_FINITE ? V_NAN : word == NOT_FINITE ? V_INF : 0;
        codes[i] = (uint8_t)(word == 0 || word >= NOT_FINITE ? special : q);
    }
}
