// What the kernels share: number types, vectors, activations, the grid. The formulas are those of
// quantizers/functional.py, to which tests hold them.
//
//     h = activation(x)    u = h / s + offset    q = clamp(round(u), q_min, q_max)    y = (q - offset) s
//
// computed relative to the whole number z nearest to the offset, which moves q_min and q_max instead of u: with a whole
// offset, a zero point, this is what runtimes compute, ties included.
// Vectors are those of gcc and clang, as long as registers are: what they hold never passes through memory.

#include <math.h>
#include <string.h>

enum { NO_ACTIVATION, RELU, HARDSWISH };

// What quantizers/functional.py's `_kernel_options` fills in.
typedef struct {
    float q_min, q_max;
    int binary;  // the grid is {-1, 1}
    int activation;
    int x_is_bf16, y_is_bf16;  // else float; grad is of the type of y, grad_x of that of x
} Options;

typedef struct {
    float step, offset, q_min, q_max;  // step > 0
} Grid;

#define INLINE static inline __attribute__((always_inline))
#define PARALLEL_FROM 32768  // numbers

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Ints __attribute__((vector_size(4 * LANES)));
typedef unsigned Words __attribute__((vector_size(4 * LANES)));
typedef unsigned short Halves __attribute__((vector_size(2 * LANES)));

INLINE float load(const void *p, long i, int is_bf16)
{
    if (!is_bf16) return ((const float *)p)[i];
    union {
        unsigned bits;
        float value;
    } f = {(unsigned)((const unsigned short *)p)[i] << 16};
    return f.value;
}

// `lanes` numbers of which the first is number i, and zeros; all LANES where that is constant.
INLINE Floats load_lanes(const void *p, long i, long lanes, int is_bf16)
{
    if (is_bf16) {
        Halves half = {0};
        memcpy(&half, (const unsigned short *)p + i, 2 * lanes);
        return (Floats)(__builtin_convertvector(half, Words) << 16);
    }
    Floats v = {0};
    memcpy(&v, (const float *)p + i, 4 * lanes);
    return v;
}

INLINE Floats choose(Ints wanted, Floats a, Floats b)  // a where wanted is -1, b where it is 0
{
    return (Floats)(((Ints)a & wanted) | ((Ints)b & ~wanted));
}

INLINE void store_lanes(void *p, long i, Floats v, long lanes, int is_bf16)
{
    if (is_bf16) {
        Words bits = (Words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // half to even
        rounded = (rounded & (Words)(v == v)) | (0x7fc0 & (Words)(v != v));
        Halves half = __builtin_convertvector(rounded, Halves);
        memcpy((unsigned short *)p + i, &half, 2 * lanes);
    } else
        memcpy((float *)p + i, &v, 4 * lanes);
}

INLINE Floats splat(float x) { return x - (Floats){0}; }

INLINE float sum_of_lanes(Floats v)
{
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += v[l];
    return sum;
}

INLINE Floats activate(Floats x, int activation)  // NaN stays NaN
{
    if (activation == RELU) return choose(x < 0, splat(0), x);
    if (activation == HARDSWISH) {
        Floats gate = x + 3;
        gate = choose(gate < 0, splat(0), gate);
        gate = choose(gate > 6, splat(6), gate);
        return x * gate / 6;
    }
    return x;
}

INLINE Floats through_activation(Floats grad, Floats x, int activation)  // grad times the slope at x
{
    if (activation == RELU) return choose(x > 0, grad, splat(0));
    if (activation == HARDSWISH) {
        Floats slope = choose(x < 3, x * (1 / 3.0f) + 0.5f, splat(1));
        return choose(x <= -3, splat(0), grad * slope);
    }
    return grad;
}

INLINE Floats code(Floats u, Grid grid, int binary)
{
    if (binary) return choose(u >= 0, splat(1), splat(-1));
    const float far = 12582912;  // 1.5 2^23: what is added to it is rounded half to even; limits are nearer than 2^22
    Floats q = u + far - far;
    q = choose(q < grid.q_min, splat(grid.q_min), q);
    return choose(q > grid.q_max, splat(grid.q_max), q);
}

INLINE Floats on_grid(Floats x, Grid grid, int activation, int binary)  // x activated and fake-quantized
{
    Floats u = activate(x, activation) / grid.step + grid.offset;
    return (code(u, grid, binary) - grid.offset) * grid.step;
}

typedef struct {
    Floats by_x, by_step, by_offset;  // the last two over -step
} Gradient;

INLINE Gradient gradient(Floats x, Floats grad, Grid grid, int activation, int binary)  // of on_grid, times grad
{
    Floats u = activate(x, activation) / grid.step + grid.offset;
    Ints inside = (u >= grid.q_min) & (u <= grid.q_max);
    Floats error = code(u, grid, binary) - choose(inside, u, splat(grid.offset));
    Floats by_x = through_activation(choose(inside, grad, splat(0)), x, activation);
    return (Gradient){by_x, error * grad, choose(inside, splat(0), grad)};
}

// One loop for every activation, kind of grid and pair of types: inside a loop nothing branches.
#define BY_TYPES(function, ...)                                       \
    do {                                                              \
        if (!options->x_is_bf16) function(__VA_ARGS__, 0, 0);         \
        else if (options->y_is_bf16) function(__VA_ARGS__, 1, 1);     \
        else function(__VA_ARGS__, 1, 0);                             \
    } while (0)
#define BY_GRID(function, activation, ...)                                      \
    do {                                                                        \
        if (options->binary) BY_TYPES(function, __VA_ARGS__, activation, 1);    \
        else BY_TYPES(function, __VA_ARGS__, activation, 0);                    \
    } while (0)
#define DISPATCH(function, ...)                                                 \
    switch (options->activation) {                                              \
    case NO_ACTIVATION: BY_GRID(function, NO_ACTIVATION, __VA_ARGS__); break;   \
    case RELU: BY_GRID(function, RELU, __VA_ARGS__); break;                     \
    case HARDSWISH: BY_GRID(function, HARDSWISH, __VA_ARGS__); break;           \
    }

INLINE long shorter(long a, long b) { return a < b ? a : b; }

static inline Grid make_grid(const float *step, const float *offset, const Options *options)
{
    float zero = offset ? rintf(*offset) : 0;
    return (Grid){fabsf(*step), offset ? *offset - zero : 0, options->q_min - zero, options->q_max - zero};
}
