// Vectors of LANES floats or words in the notation of GCC and clang, and operations that this notation lacks. With AVX2
// each operation is one instruction.

#ifdef __AVX2__
#include <immintrin.h>
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));  // results of comparisons: all bits of a lane, or none

enum { GROUP = 32, VECTORS = GROUP / LANES };                   // codes read and written at once

#define INLINE static inline __attribute__((always_inline))

INLINE floats load_floats(const float *x) { floats r; memcpy(&r, x, sizeof r); return r; }
INLINE void store_floats(float *to, floats x) { memcpy(to, &x, sizeof x); }
INLINE floats all_floats(float x) { return x - (floats){0}; }
INLINE words all_words(uint32_t x) { return x - (words){0}; }

INLINE words first_words(void) {  // 0, 1, 2, ...
    words r;
    for (int k = 0; k < LANES; k++) r[k] = (uint32_t)k;
    return r;
}

INLINE words select_words(whole which, words x, words otherwise) {
    return (x & (words)which) | (otherwise & ~(words)which);
}
INLINE floats select_floats(whole which, floats x, floats otherwise) {
    return (floats)select_words(which, (words)x, (words)otherwise);
}
INLINE floats keep_floats(whole keep, floats x) { return (floats)((words)x & (words)keep); }

INLINE uint32_t largest(words x) {
    uint32_t r = x[0];
    for (int k = 1; k < LANES; k++) r = x[k] > r ? x[k] : r;
    return r;
}

INLINE uint32_t smallest(words x) {
    uint32_t r = x[0];
    for (int k = 1; k < LANES; k++) r = x[k] < r ? x[k] : r;
    return r;
}

#define LARGER_floats larger_floats
#define SMALLER_floats smaller_floats
#define SELECT_floats select_floats

#ifdef __AVX2__

INLINE floats larger_floats(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE floats smaller_floats(floats a, floats b) { return (floats)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE words larger_words(words a, words b) { return (words)_mm256_max_epu32((__m256i)a, (__m256i)b); }
INLINE words smaller_words(words a, words b) { return (words)_mm256_min_epu32((__m256i)a, (__m256i)b); }
INLINE floats roots(floats x) { return (floats)_mm256_sqrt_ps((__m256)x); }

INLINE floats above_one_times(floats x, floats scale) {  // (x - 1) * scale, whose difference is exact for x in [1, 256]
#ifdef __FMA__
    return (floats)_mm256_fmsub_ps((__m256)x, (__m256)scale, (__m256)scale);
#else
    return (x - 1.0f) * scale;
#endif
}

// Whether (x & mask) - first is below `count` for all n bytes, which are whole groups.
INLINE int all_within(const uint8_t *x, int64_t n, uint8_t mask, uint8_t first, uint8_t count) {
    const __m256i masks = _mm256_set1_epi8((char)mask), firsts = _mm256_set1_epi8((char)first);
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += GROUP) {
        __m256i bits = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), masks);
        most = _mm256_max_epu8(most, _mm256_sub_epi8(bits, firsts));
    }
    __m256i beyond = _mm256_cmpeq_epi8(_mm256_max_epu8(most, _mm256_set1_epi8((char)count)), most);
    return _mm256_testz_si256(beyond, beyond);
}

INLINE words widened(const uint8_t *x) { return (words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x)); }
INLINE words widened_with_sign(const uint8_t *x) {
    return (words)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x));
}

INLINE void store_upper_halves(uint16_t *to, words x, words y) {
    __m256i halves = _mm256_packus_epi32(_mm256_srli_epi32((__m256i)x, 16), _mm256_srli_epi32((__m256i)y, 16));
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(halves, 0xd8));
}

INLINE void store_in_order(uint8_t *to, __m256i x) {  // packing alternates the halves of two vectors
    __m256i ordered = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)to, ordered);
}

INLINE __m256i narrowed(const words x[VECTORS]) {
    return _mm256_packus_epi16(_mm256_packus_epi32((__m256i)x[0], (__m256i)x[1]),
                               _mm256_packus_epi32((__m256i)x[2], (__m256i)x[3]));
}

INLINE void store_narrowed(uint8_t *to, const words x[VECTORS]) { store_in_order(to, narrowed(x)); }  // below 256

INLINE void store_narrowed_with_sign(uint8_t *to, const words x[VECTORS], const floats sign[VECTORS]) {  // below 128
    __m256i signs = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)sign[0], (__m256i)sign[1]),
                                       _mm256_packs_epi32((__m256i)sign[2], (__m256i)sign[3]));
    __m256i top = _mm256_and_si256(signs, _mm256_set1_epi8((char)0x80));
    store_in_order(to, _mm256_or_si256(narrowed(x), top));
}

#else

INLINE void store_upper_halves(uint16_t *to, words x, words y) {
    for (int k = 0; k < LANES; k++) to[k] = (uint16_t)(x[k] >> 16), to[LANES + k] = (uint16_t)(y[k] >> 16);
}

typedef uint8_t few_bytes __attribute__((vector_size(LANES)));
typedef int8_t few_signed_bytes __attribute__((vector_size(LANES)));

INLINE floats larger_floats(floats a, floats b) { return select_floats(a > b, a, b); }
INLINE floats smaller_floats(floats a, floats b) { return select_floats(a < b, a, b); }
INLINE words larger_words(words a, words b) { return select_words((whole)(a > b), a, b); }
INLINE words smaller_words(words a, words b) { return select_words((whole)(a < b), a, b); }
INLINE floats roots(floats x) { return (floats){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])}; }
INLINE floats above_one_times(floats x, floats scale) { return (x - 1.0f) * scale; }

INLINE int all_within(const uint8_t *x, int64_t n, uint8_t mask, uint8_t first, uint8_t count) {
    uint8_t beyond = 0;
    for (int64_t i = 0; i < n; i++) beyond |= (uint8_t)((x[i] & mask) - first) >= count;
    return !beyond;
}

INLINE words widened(const uint8_t *x) {
    few_bytes r;
    memcpy(&r, x, sizeof r);
    return __builtin_convertvector(r, words);
}
INLINE words widened_with_sign(const uint8_t *x) {
    few_signed_bytes r;
    memcpy(&r, x, sizeof r);
    return (words)__builtin_convertvector(r, whole);
}

INLINE void store_narrowed(uint8_t *to, const words x[VECTORS]) {
    for (int k = 0; k < VECTORS; k++) {
        few_bytes r = __builtin_convertvector(x[k], few_bytes);
        memcpy(to + LANES * k, &r, sizeof r);
    }
}

INLINE void store_narrowed_with_sign(uint8_t *to, const words x[VECTORS], const floats sign[VECTORS]) {
    words both[VECTORS];
    for (int k = 0; k < VECTORS; k++) both[k] = x[k] | ((words)sign[k] >> 24 & 0x80);
    store_narrowed(to, both);
}

#endif
