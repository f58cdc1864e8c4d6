// What quantize.c and normalize.c share: number types, activations, the grid. The formulas are those of
// quantizers/functional.py, to which tests hold them.
//
//     h = activation(x)    u = h / s + offset    q = clamp(round(u), q_min, q_max)    y = (q - offset) s
//
// computed relative to the whole number z nearest to the offset, which moves q_min and q_max instead of u: with a whole
// offset, a zero point, this is what runtimes compute, ties included.

#include <math.h>

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

typedef union {
    float value;
    unsigned bits;
} Float;

INLINE float load(const void *p, long i, int is_bf16)
{
    if (!is_bf16) return ((const float *)p)[i];
    Float f = {.bits = (unsigned)((const unsigned short *)p)[i] << 16};
    return f.value;
}

INLINE void store(void *p, long i, float value, int is_bf16)
{
    if (is_bf16) {
        Float f = {.value = value};
        unsigned rounded = (f.bits + 0x7fff + ((f.bits >> 16) & 1)) >> 16;  // half to even
        ((unsigned short *)p)[i] = value == value ? rounded : 0x7fc0;
    } else
        ((float *)p)[i] = value;
}

INLINE float activate(float x, int activation)  // comparisons are written so that NaN stays NaN
{
    if (activation == RELU) return x < 0 ? 0 : x;
    if (activation == HARDSWISH) {
        float gate = x + 3;
        gate = gate < 0 ? 0 : gate;
        gate = gate > 6 ? 6 : gate;
        return x * gate / 6;
    }
    return x;
}

INLINE float slope(float x, int activation)
{
    if (activation == RELU) return x > 0 ? 1 : 0;
    if (activation == HARDSWISH) return x <= -3 ? 0 : x < 3 ? x * (1 / 3.0f) + 0.5f : 1;
    return 1;
}

INLINE float code(float u, Grid grid, int binary)
{
    if (binary) return u >= 0 ? 1 : -1;
    float q = rintf(u);  // half to even
    q = q < grid.q_min ? grid.q_min : q;
    return q > grid.q_max ? grid.q_max : q;
}

INLINE float on_grid(float x, Grid grid, int activation, int binary)  // x activated and fake-quantized
{
    float u = activate(x, activation) / grid.step + grid.offset;
    return (code(u, grid, binary) - grid.offset) * grid.step;
}

typedef struct {
    float by_x, by_step, by_offset;  // the last over -step
} Gradient;

INLINE Gradient gradient(float x, float grad, Grid grid, int activation, int binary)  // of on_grid, times grad
{
    float u = activate(x, activation) / grid.step + grid.offset;
    int inside = u >= grid.q_min && u <= grid.q_max;
    float error = code(u, grid, binary) - (inside ? u : grid.offset);
    return (Gradient){inside ? grad * slope(x, activation) : 0, error * grad, inside ? 0 : grad};
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
