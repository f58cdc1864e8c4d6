// Fake-quantization of n floats or bfloat16 numbers and its gradient, on the CPU. The formulas are those of functional.py, to which
// tests hold this file: forward bit for bit.
//
//     h = activation(x)    u = h / s + offset    q = clamp(round(u), q_min, q_max)    y = (q - offset) s
//
// A vector is cut into pieces that depend on n alone, and the sums of the pieces are added in order, so that a gradient
// does not depend on the number of threads.

#include <math.h>

enum { NO_ACTIVATION, RELU, HARDSWISH };

// What functional.py's `_kernel_options` fills in.
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
#define BLOCK 4096      // floats that are summed in single precision
#define MAX_PIECES 256  // units of work for the threads
#define PARALLEL_FROM 32768

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

INLINE void forward(const void *x, void *y, long begin, long end, Grid grid, int activation, int binary, int x_is_bf16,
                    int y_is_bf16)
{
#pragma omp simd
    for (long i = begin; i < end; i++) {
        float u = activate(load(x, i, x_is_bf16), activation) / grid.step + grid.offset;
        store(y, i, (code(u, grid, binary) - grid.offset) * grid.step, y_is_bf16);
    }
}

INLINE void backward(const void *x, const void *grad, void *grad_x, long begin, long end, Grid grid, double *sums,
                     int activation, int binary, int x_is_bf16, int y_is_bf16)
{
    float step_sum = 0, offset_sum = 0;
#pragma omp simd reduction(+ : step_sum, offset_sum)
    for (long i = begin; i < end; i++) {
        float here = load(x, i, x_is_bf16), g = load(grad, i, y_is_bf16);
        float u = activate(here, activation) / grid.step + grid.offset;
        int inside = u >= grid.q_min && u <= grid.q_max;
        float error = code(u, grid, binary) - (inside ? u : grid.offset);
        step_sum += error * g;
        offset_sum -= inside ? 0 : g;
        store(grad_x, i, inside ? g * slope(here, activation) : 0, x_is_bf16);
    }
    sums[0] += step_sum;
    sums[1] += offset_sum;
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

static long piece_size(long n)
{
    long size = (n + MAX_PIECES - 1) / MAX_PIECES;
    return (size + BLOCK - 1) / BLOCK * BLOCK;
}

INLINE long shorter(long a, long b) { return a < b ? a : b; }

static Grid make_grid(const float *step, const float *offset, const Options *options)
{
    return (Grid){fabsf(*step), offset ? *offset : 0, options->q_min, options->q_max};
}

// offset may be NULL: 0.
void fake_quantize(const void *x, void *y, long n, const float *step, const float *offset, const Options *options)
{
    if (n <= 0) return;
    Grid grid = make_grid(step, offset, options);
    long size = piece_size(n);
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (long start = 0; start < n; start += size)
        DISPATCH(forward, x, y, start, shorter(start + size, n), grid)
}

// grad_x may be grad if the types agree. grad_step gets grad_scale d / d step (the sign of the step included),
// grad_offset (or NULL) d / d offset.
void fake_quantize_backward(const void *x, const void *grad, void *grad_x, long n, const float *step,
                            const float *offset, const Options *options, float grad_scale, float *grad_step,
                            float *grad_offset)
{
    Grid grid = make_grid(step, offset, options);
    long size = n > 0 ? piece_size(n) : 1;
    double sums[MAX_PIECES][2] = {{0}};
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (long start = 0; start < n; start += size)
        for (long i = start; i < shorter(start + size, n); i += BLOCK)
            DISPATCH(backward, x, grad, grad_x, i, shorter(i + BLOCK, shorter(start + size, n)), grid, sums[start / size])
    double step_sum = 0, offset_sum = 0;
    for (int piece = 0; piece < MAX_PIECES; piece++) {
        step_sum += sums[piece][0];
        offset_sum += sums[piece][1];
    }
    *grad_step = (float)(grad_scale * (*step < 0 ? -step_sum : step_sum));
    if (grad_offset) *grad_offset = (float)(offset_sum * grid.step);
}
