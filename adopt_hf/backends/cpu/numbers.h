// 16-bit numbers, and the bits of floats.

#include <stdint.h>
#include <string.h>

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
    uint32_t subnormal = as_bits(as_float(size + 0x38800000) - 0x1p-14f);  // no float that a processor flushes
    return as_float(sign | (size >= 0x0f800000 ? size | 0x7f800000 : size < 0x00800000 ? subnormal : normal));
}

static inline float16 store_float16(float x) {  // to nearest, ties to even
    uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t normal = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
    uint32_t subnormal = as_bits(as_float(size) + 0.5f) - 0x3f000000;  // last place of 0.5: float16's smallest
    uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;              // NaN, or inf beyond the largest number
    return (float16){(uint16_t)(sign | (size >= 0x47800000 ? large : size < 0x38800000 ? subnormal : normal))};
}

static inline float load_float(float x) { return x; }
static inline float store_float(float x) { return x; }
static inline double load_double(double x) { return x; }
static inline double store_double(double x) { return x; }
