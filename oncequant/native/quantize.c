// Fake-quantization of n floats or bfloat16 numbers and its gradient, on the CPU. Forward it is functional.py's bit for
// bit.
//
// A vector is cut into pieces that depend on n alone, and the sums of the pieces are added in order, so that a gradient
// does not depend on the number of threads.

#include "grid.h"

#define BLOCK 4096      // floats that are summed in single precision
#define MAX_PIECES 256  // units of work for the threads

INLINE void forward_some(const void *x, void *y, long i, long lanes, Grid grid, int activation, int binary, int x_is_bf16,
                         int y_is_bf16)
{
    store_lanes(y, i, on_grid(load_lanes(x, i, lanes, x_is_bf16), grid, activation, binary), lanes, y_is_bf16);
}

INLINE void forward(const void *x, void *y, long begin, long end, Grid grid, int activation, int binary, int x_is_bf16,
                    int y_is_bf16)
{
    long i = begin;
    for (; i + LANES <= end; i += LANES) forward_some(x, y, i, LANES, grid, activation, binary, x_is_bf16, y_is_bf16);
    if (i < end) forward_some(x, y, i, end - i, grid, activation, binary, x_is_bf16, y_is_bf16);
}

INLINE void backward_some(const void *x, const void *grad, void *grad_x, long i, long lanes, Grid grid,
                          Floats *by_step, Floats *by_offset, int activation, int binary, int x_is_bf16, int y_is_bf16)
{
    Floats here = load_lanes(x, i, lanes, x_is_bf16), by_y = load_lanes(grad, i, lanes, y_is_bf16);
    Gradient by = gradient(here, by_y, grid, activation, binary);
    *by_step += by.by_step;
    *by_offset -= by.by_offset;
    store_lanes(grad_x, i, by.by_x, lanes, x_is_bf16);
}

INLINE void backward(const void *x, const void *grad, void *grad_x, long begin, long end, Grid grid, double *sums,
                     int activation, int binary, int x_is_bf16, int y_is_bf16)
{
    Floats by_step = {0}, by_offset = {0};
    long i = begin;
    for (; i + LANES <= end; i += LANES)
        backward_some(x, grad, grad_x, i, LANES, grid, &by_step, &by_offset, activation, binary, x_is_bf16, y_is_bf16);
    if (i < end)
        backward_some(x, grad, grad_x, i, end - i, grid, &by_step, &by_offset, activation, binary, x_is_bf16,
                      y_is_bf16);
    sums[0] += sum_of_lanes(by_step);
    sums[1] += sum_of_lanes(by_offset);
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
