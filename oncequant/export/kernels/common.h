/* Integer kernels. Maps are bytes, channels last; weights are words of codes that a shift and a mask unpack. */

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "-ffast-math and its parts change how numbers are rounded: compile without them"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words of codes are read as little-endian"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16 /* 16: but for half precision */
#error "float arithmetic must be rounded to float: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

/* The backend, by what the compiler is told of the target. */
#if defined(NETWORK_PORTABLE)
#elif defined(__ARM_FEATURE_DOTPROD)
#define NETWORK_NEON
#include <arm_neon.h>
#elif defined(__ARM_FEATURE_DSP) && !defined(__ARM_NEON)
#define NETWORK_CORTEX_M
#include <arm_acle.h>
#endif
#ifdef NETWORK_CORTEX_M
#define IF_CORTEX_M(...) __VA_ARGS__
#else
#define IF_CORTEX_M(...)
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNUSED __attribute__((unused))
#define KERNEL UNUSED static __attribute__((noinline)) /* one copy each: networks call kernels many times */
#if defined(__clang__) /* unrolls by itself, and warns where it is told to and cannot */
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Whether this processor has what avx2.h and vnni.h need: known when compiled for it, else asked when it runs. */
#if defined(__x86_64__) && !defined(NETWORK_PORTABLE) && !defined(NETWORK_NO_AVX2) && !defined(NETWORK_INTEGER)
#define NETWORK_AVX2
#include <immintrin.h>
#ifdef __AVX2__
#define NETWORK_HAS_AVX2 1
#else
#define NETWORK_HAS_AVX2 __builtin_cpu_supports("avx2")
#endif
#define IF_AVX2(...) __VA_ARGS__
#else
#define IF_AVX2(...)
#endif
#if defined(NETWORK_AVX2) && !defined(NETWORK_NO_VNNI)
#define NETWORK_VNNI
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__)
#define NETWORK_HAS_VNNI 1
#else
#define NETWORK_HAS_VNNI                                                            \
    (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") && \
     __builtin_cpu_supports("avx512vbmi2"))
#endif
#define IF_VNNI(...) \
    if (NETWORK_HAS_VNNI) __VA_ARGS__
#else
#define IF_VNNI(...)
#endif
#if defined(NETWORK_VNNI) && defined(__linux__) && !defined(NETWORK_NO_AMX) && (defined(__clang__) || __GNUC__ >= 11)
#define NETWORK_AMX /* used if the processor has it when it runs */
#define IF_AMX(...) __VA_ARGS__

static int amx_is_there; /* set once, before anything runs */

/* Linux gives tiles to a process that asks for them: before `main`, or when a library is loaded. Compiled for every
 * processor, unlike amx.h. */
__attribute__((constructor)) static void amx_ask(void)
{
    enum { ARCH_PRCTL = 158, REQUEST_STATE = 0x1023, TILE_DATA = 18 }; /* of Linux on x86-64 */
    long result = ARCH_PRCTL;
    if (!NETWORK_HAS_VNNI) return;
    __asm__ volatile("syscall" : "+a"(result) : "D"(REQUEST_STATE), "S"(TILE_DATA) : "rcx", "r11", "memory");
    amx_is_there = result == 0; /* else the processor has no tiles, or the kernel does not know them */
}
#else
#define IF_AMX(...)
#endif

/* Without a floating-point unit results are scaled by whole numbers, and by float where only float can tell. */
#if defined(__arm__) && !defined(__ARM_FP) && !defined(NETWORK_SOFT_FLOAT)
#define NETWORK_INTEGER
#endif

#ifdef NETWORK_UNEVEN /* any depthwise layer of this network */
#define IS_EVEN(CHANNELS) ((CHANNELS) % 4 == 0)
#else
#define IS_EVEN(CHANNELS) 1
#endif
#ifdef NETWORK_DILATED /* any layer of this network */
#define DILATION(LAYER) (LAYER)->dilation
#else
#define DILATION(LAYER) 1
#endif

enum { LANES = 8 }; /* output channels whose words lie side by side */

typedef struct {
    const uint32_t *weights;
    const int32_t *bias;           /* of each output channel, with what the zero point of the input adds */
    const float *ratio;            /* value of one unit of the accumulator, in steps of the output or in logits */
    int32_t bits;                  /* of a code */
    int32_t factor, offset, shift; /* a weight is (factor * code - offset) * 2^shift */
    int32_t size, channels, kernel, stride, out_size, out_channels;
    int32_t in_zero, in_max;       /* of the input's codes */
    int32_t zero, max;             /* of the output's codes */
    int16_t pad, dilation;         /* pixels of zero points around the map; pixels from one tap to the next */
} network_layer;

INLINE int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

/* The code of a value in steps: round half to even, as adding 1.5 * 2^23 does; add the zero point; clamp. */
#if defined(NETWORK_CORTEX_M) && defined(__ARM_FP)
INLINE uint8_t code_of(float value, int32_t zero, int32_t max)
{
    int32_t steps;
    __asm__("vcvtr.s32.f32 %0, %0" : "+t"(value)); /* half to even, too; what is too large is clamped either way */
    memcpy(&steps, &value, 4);
    return (uint8_t)least((int32_t)__usat(__qadd(steps, zero), 8), max);
}
#else
INLINE uint8_t code_of(float value, int32_t zero, int32_t max)
{
    const float big = 12582912.0f, most = (float)max;
    float code = (value + big) - big + (float)zero;
    code = code < 0.0f ? 0.0f : code;
    code = code > most ? most : code;
    return (uint8_t)(int32_t)code;
}
#endif

/* a * code + c with one rounding; in double the product is exact, and so is the sum of numbers this close */
INLINE float fused(float a, uint8_t code, float c)
{
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, (float)code, c);
#else
    return (float)((double)a * (double)code + (double)c);
#endif
}

/* A sum of products as the accumulator has it; unsigned, since what is taken away again may not fit in between. */
INLINE int32_t accumulator(int32_t sum, int32_t shift, int32_t bias)
{
    return (int32_t)(((uint32_t)sum << shift) + (uint32_t)bias);
}

#ifdef NETWORK_INTEGER
/* value / 2^shift, rounded to whole steps, in float and in whole numbers alike: unless it lies within 2^-14 of the middle
 * between two, where the roundings of float decide. A result that is a code, and what it is summed of, is below 1024:
 * its two roundings in float err by less than 2^-14. Larger results are clamped either way. Returns whether `steps` were
 * found. */
KERNEL int whole_steps(int64_t value, int32_t shift, int32_t *steps)
{
    const int64_t parts = (value + ((int64_t)1 << (shift - 1))) >> (shift - 14); /* of 2^-14 steps, from the middle on */
    const int64_t code = parts >> 14;
    *steps = code < -1024 ? -1024 : code > 1024 ? 1024 : (int32_t)code;
    return ((parts + 1) & 0x3fff) > 1;
}

/* The same of value * ratio: a ratio is a number of 24 bits times a power of two, so the product has no error. */
KERNEL int product_steps(int32_t value, float ratio, int32_t *steps)
{
    uint32_t bits;
    memcpy(&bits, &ratio, 4);
    const int32_t number = (int32_t)((bits & 0x7fffff) | 0x800000), shift = 150 - (int32_t)(bits >> 23 & 255);
    if (shift < 16 || shift > 60) return 0;
    return whole_steps((int64_t)value * (bits >> 31 ? -number : number), shift, steps);
}

INLINE uint8_t clamped(int32_t code, int32_t max) { return (uint8_t)(code < 0 ? 0 : code > max ? max : code); }
#endif

/* The code of an accumulator, or of a sum. */
#ifdef NETWORK_INTEGER
KERNEL uint8_t scaled(int32_t value, float ratio, int32_t zero, int32_t max)
{
    int32_t steps;
    if (product_steps(value, ratio, &steps)) return clamped(steps + zero, max);
    return code_of((float)value * ratio, zero, max);
}
#else
INLINE uint8_t scaled(int32_t value, float ratio, int32_t zero, int32_t max)
{
    return code_of((float)value * ratio, zero, max);
}
#endif

/* ---- codes of weights */

/* Where the words of the parts of a block's codes begin: 3 bits are 2 + 1, 6 are 4 + 2. */
typedef struct {
    const uint32_t *of8, *of4, *of2, *of1;
} network_words;

/* Steps, of four inputs each, whose codes lie in whole words of every part. */
INLINE int32_t chunk_steps(const int bits) { return bits & 1 ? 8 : bits & 2 ? 4 : bits & 4 ? 2 : 1; }

INLINE int32_t words_of8(const int bits, int32_t steps) { return bits & 8 ? steps : 0; }
INLINE int32_t words_of4(const int bits, int32_t steps) { return bits & 4 ? (steps + 1) / 2 : 0; }
INLINE int32_t words_of2(const int bits, int32_t steps) { return bits & 2 ? (steps + 3) / 4 : 0; }
INLINE int32_t words_of1(const int bits, int32_t steps) { return bits & 1 ? (steps + 7) / 8 : 0; }

INLINE network_words first_words(const int bits, const uint32_t *words, int32_t lanes, int32_t steps)
{
    network_words part;
    part.of8 = words;
    part.of4 = part.of8 + lanes * words_of8(bits, steps);
    part.of2 = part.of4 + lanes * words_of4(bits, steps);
    part.of1 = part.of2 + lanes * words_of2(bits, steps);
    return part;
}

INLINE network_words next_words(const int bits, network_words part, int32_t lanes)
{
    const int32_t steps = chunk_steps(bits);
    part.of8 += lanes * steps;
    part.of4 += lanes * (steps / 2);
    part.of2 += lanes * (steps / 4);
    part.of1 += lanes * (steps / 8);
    return part;
}

INLINE int32_t block_words(const int bits, int32_t lanes, int32_t steps)
{
    return lanes * (words_of8(bits, steps) + words_of4(bits, steps) + words_of2(bits, steps) + words_of1(bits, steps));
}

/* Of whole blocks of channels. */
UNUSED INLINE int32_t words_before(const network_layer *l, int32_t channels)
{
    return channels ? block_words(l->bits, channels, (l->kernel * l->kernel * l->channels + 3) / 4) : 0;
}

/* Codes of one step of a chunk, one a byte: all four (unit 0x01010101), or each second one (unit 0x00010001, shift 0 or
 * 8). T is a word, or the words of several channels. */
#define DEFINE_CODES(NAME, T, LOAD)                                                                                   \
    INLINE T NAME(const int bits, network_words part, int32_t lanes, const int s, const int shift, const uint32_t unit) \
    {                                                                                                                 \
        T code = {0};                                                                                                 \
        if (bits & 8) code = (LOAD(part.of8 + s * lanes) >> shift) & (255 * unit);                                    \
        if (bits & 4) code |= (LOAD(part.of4 + s / 2 * lanes) >> (4 * (s % 2) + shift)) & (15 * unit);                \
        if (bits & 2) code |= ((LOAD(part.of2 + s / 4 * lanes) >> (2 * (s % 4) + shift)) & (3 * unit)) << (bits & 4); \
        if (bits & 1) code |= ((LOAD(part.of1 + s / 8 * lanes) >> (s % 8 + shift)) & unit) << (bits & 6);             \
        return code;                                                                                                  \
    }

UNUSED INLINE uint32_t load_word(const void *from)
{
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}
DEFINE_CODES(codes_of_word, uint32_t, *)
