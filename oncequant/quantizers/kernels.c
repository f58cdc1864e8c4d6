// Fake-quantization of n floats and its gradient, on the CPU. The formulas are those of functional.py, to which
// tests hold this file: forward bit for bit.
//
//     h = activation(x)    u = h / s + offset    q = clamp(round(u), q_min, q_max)    y = (q - offset) s
//
// A vector is cut into pieces that depend on n alone, and the sums of the pieces are added in order, so that a gradient
// does not depend on the number of threads.

#include <math.h>

enum { NO_ACTIVATION, RELU, HARDSWISH };

typedef struct {
    float step, offset, q_min, q_max;  // step > 0
    int binary;                        // the grid is {-1, 1}
    int activation;
} Grid;

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 4096      // floats that are summed in single precision
#define MAX_PIECES 256  // units of work for the threads
#define PARALLEL_FROM 32768

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

INLINE void forward(const float *restrict x, float *restrict y, long n, Grid grid, int activation, int binary)
{
#pragma omp simd
    for (long i = 0; i < n; i++) {
        float u = activate(x[i], activation) / grid.step + grid.offset;
        y[i] = (code(u, grid, binary) - grid.offset) * grid.step;
    }
}

INLINE void backward(const float *restrict x, const float *restrict grad, float *restrict grad_x, long n, Grid grid,
                     double *sums, int activation, int binary)
{
    float step_sum = 0, offset_sum = 0;
#pragma omp simd reduction(+ : step_sum, offset_sum)
    for (long i = 0; i < n; i++) {
        float u = activate(x[i], activation) / grid.step + grid.offset;
        int inside = u >= grid.q_min && u <= grid.q_max;
        float error = code(u, grid, binary) - (inside ? u : grid.offset);
        step_sum += error * grad[i];
        offset_sum -= inside ? 0 : grad[i];
        grad_x[i] = inside ? grad[i] * slope(x[i], activation) : 0;
    }
    sums[0] += step_sum;
    sums[1] += offset_sum;
}

// One loop for every activation and kind of grid: inside a loop nothing branches.
#define DISPATCH(function, ...)                                                            \
    switch (2 * grid.activation + grid.binary) {                                           \
    case 2 * NO_ACTIVATION: function(__VA_ARGS__, NO_ACTIVATION, 0); break;                \
    case 2 * NO_ACTIVATION + 1: function(__VA_ARGS__, NO_ACTIVATION, 1); break;            \
    case 2 * RELU: function(__VA_ARGS__, RELU, 0); break;                                  \
    case 2 * RELU + 1: function(__VA_ARGS__, RELU, 1); break;                              \
    case 2 * HARDSWISH: function(__VA_ARGS__, HARDSWISH, 0); break;                        \
    case 2 * HARDSWISH + 1: function(__VA_ARGS__, HARDSWISH, 1); break;                    \
    }

static long piece_size(long n)
{
    long size = (n + MAX_PIECES - 1) / MAX_PIECES;
    return (size + BLOCK - 1) / BLOCK * BLOCK;
}

INLINE long shorter(long a, long b) { return a < b ? a : b; }

static Grid make_grid(const float *step, const float *offset, float q_min, float q_max, int binary, int activation)
{
    return (Grid){fabsf(*step), offset ? *offset : 0, q_min, q_max, binary, activation};
}

// offset may be NULL: 0.
void fake_quantize(const float *x, float *y, long n, const float *step, const float *offset, float q_min, float q_max,
                   int binary, int activation)
{
    if (n <= 0) return;
    Grid grid = make_grid(step, offset, q_min, q_max, binary, activation);
    long size = piece_size(n);
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (long start = 0; start < n; start += size)
        DISPATCH(forward, x + start, y + start, shorter(size, n - start), grid)
}

// grad_step gets grad_scale d / d step (the sign of the step included), grad_offset (or NULL) d / d offset.
void fake_quantize_backward(const float *x, const float *grad, float *grad_x, long n, const float *step,
                            const float *offset, float q_min, float q_max, int binary, int activation,
                            float grad_scale, float *grad_step, float *grad_offset)
{
    Grid grid = make_grid(step, offset, q_min, q_max, binary, activation);
    long size = n > 0 ? piece_size(n) : 1;
    double sums[MAX_PIECES][2] = {{0}};
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (long start = 0; start < n; start += size)
        for (long i = start; i < shorter(start + size, n); i += BLOCK)
            DISPATCH(backward, x + i, grad + i, grad_x + i, shorter(BLOCK, n - i), grid, sums[start / size])
    double step_sum = 0, offset_sum = 0;
    for (int piece = 0; piece < MAX_PIECES; piece++) {
        step_sum += sums[piece][0];
        offset_sum += sums[piece][1];
    }
    *grad_step = (float)(grad_scale * (*step < 0 ? -step_sum : step_sum));
    if (grad_offset) *grad_offset = (float)(offset_sum * grid.step);
}
