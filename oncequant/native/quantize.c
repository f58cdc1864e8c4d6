// Fake-quantization of n floats or bfloat16 numbers and its gradient, on the CPU. Forward it is functional.py's bit for
// bit.
//
// A vector is cut into pieces that depend on n alone, and the sums of the pieces are added in order, so that a gradient
// does not depend on the number of threads.

#include "grid.h"

#define BLOCK 4096      // floats that are summed in single precision
#define MAX_PIECES 256  // units of work for the threads

INLINE void forward(const void *x, void *y, long begin, long end, Grid grid, int activation, int binary, int x_is_bf16,
                    int y_is_bf16)
{
#pragma omp simd
    for (long i = begin; i < end; i++) store(y, i, on_grid(load(x, i, x_is_bf16), grid, activation, binary), y_is_bf16);
}

INLINE void backward(const void *x, const void *grad, void *grad_x, long begin, long end, Grid grid, double *sums,
                     int activation, int binary, int x_is_bf16, int y_is_bf16)
{
    float step_sum = 0, offset_sum = 0;
#pragma omp simd reduction(+ : step_sum, offset_sum)
    for (long i = begin; i < end; i++) {
        Gradient here = gradient(load(x, i, x_is_bf16), load(grad, i, y_is_bf16), grid, activation, binary);
        step_sum += here.by_step;
        offset_sum -= here.by_offset;
        store(grad_x, i, here.by_x, x_is_bf16);
    }
    sums[0] += step_sum;
    sums[1] += offset_sum;
}

static long piece_size(long n)
{
    long size = (n + MAX_PIECES - 1) / MAX_PIECES;
    return (size + BLOCK - 1) / BLOCK * BLOCK;
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
        {
            long end = shorter(i + BLOCK, shorter(start + size, n));
            DISPATCH(backward, x, grad, grad_x, i, end, grid, sums[start / size])
        }
    double step_sum = 0, offset_sum = 0;
    for (int piece = 0; piece < MAX_PIECES; piece++) {
        step_sum += sums[piece][0];
        offset_sum += sums[piece][1];
    }
    *grad_step = (float)(grad_scale * (*step < 0 ? -step_sum : step_sum));
    if (grad_offset) *grad_offset = (float)(offset_sum * grid.step);
}
