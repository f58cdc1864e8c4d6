// Training batch norm, activation and fake-quantization in one pass, channels last, and their gradient.
//
// z holds `rows` (batch and positions) of `channels` numbers. With mean and variance of each channel over the rows,
//
//     x = (z - mean) inverse_std weight + bias = z scale + shift          y = fake_quantize(activation(x))
//
// and x is never written. `statistics` is (4, channels): mean, inverse_std, scale, shift; or (6, channels) with the least
// and the greatest z of each channel. There is at least one row.
// Rows are cut into pieces that depend on their number alone, and the sums of the pieces are added in order, so that
// nothing depends on the number of threads.

#include <float.h>
#include <stdlib.h>

#include "grid.h"

#define MAX_PIECES 32
#define CHUNK 64  // rows that are summed in single precision

typedef struct {
    long count, rows;
} Pieces;

static Pieces cut(long rows)
{
    long chunks = (rows + CHUNK - 1) / CHUNK, each = (chunks + MAX_PIECES - 1) / MAX_PIECES;
    return (Pieces){(chunks + each - 1) / each, each * CHUNK};
}

// Adds a chunk's sums (2, channels), in single precision, to those of its piece, and clears them.
INLINE void add_chunk(float *chunk, double *sums, long channels)
{
    for (long c = 0; c < 2 * channels; c++) {
        sums[c] += chunk[c];
        chunk[c] = 0;
    }
}

// The sums (2, channels) of all pieces, left in those of the first.
static void add_pieces(double *sums, Pieces pieces, long channels)
{
    for (long piece = 1; piece < pieces.count; piece++)
        for (long c = 0; c < 2 * channels; c++) sums[c] += sums[piece * 2 * channels + c];
}

INLINE void sums_of_rows(const void *z, long begin, long end, long channels, const float *about, float *chunk,
                         double *sums, float *low, float *high, int z_is_bf16, int with_extremes)
{
    for (long start = begin; start < end; start += CHUNK) {
        for (long row = start; row < shorter(start + CHUNK, end); row++)
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                float v = load(z, row * channels + c, z_is_bf16), d = v - about[c];
                chunk[c] += d;
                chunk[channels + c] += d * d;
                if (with_extremes) {
                    low[c] = v < low[c] ? v : low[c];
                    high[c] = v > high[c] ? v : high[c];
                }
            }
        add_chunk(chunk, sums, channels);
    }
}

// Fills `statistics`, with inverse_std = 1 / sqrt(variance + eps). Returns 0 without memory.
int batch_norm_statistics(const void *z, int z_is_bf16, long rows, long channels, const float *weight,
                          const float *bias, float eps, float *statistics, int with_extremes)
{
    float *mean = statistics, *inverse_std = mean + channels;
    float *scale = inverse_std + channels, *shift = scale + channels;
    Pieces pieces = cut(rows);
    double *sums = calloc(pieces.count * 2 * channels, sizeof(double));
    float *chunks = calloc((pieces.count * 4 + 1) * channels, sizeof(float));
    if (!sums || !chunks) return free(sums), free(chunks), 0;
    float *about = chunks + pieces.count * 4 * channels;  // the mean of some rows, or squares would cancel
    long some = shorter(CHUNK, rows);
    for (long row = 0; row < some; row++)
        for (long c = 0; c < channels; c++) about[c] += load(z, row * channels + c, z_is_bf16) / some;
#pragma omp parallel for schedule(static) if (rows * channels >= PARALLEL_FROM)
    for (long piece = 0; piece < pieces.count; piece++) {
        long begin = piece * pieces.rows, end = shorter(begin + pieces.rows, rows);
        float *chunk = chunks + piece * 4 * channels, *low = chunk + 2 * channels, *high = low + channels;
        double *mine = sums + piece * 2 * channels;
        for (long c = 0; c < channels; c++) low[c] = FLT_MAX, high[c] = -FLT_MAX;
        if (z_is_bf16 && with_extremes) sums_of_rows(z, begin, end, channels, about, chunk, mine, low, high, 1, 1);
        else if (z_is_bf16) sums_of_rows(z, begin, end, channels, about, chunk, mine, low, high, 1, 0);
        else if (with_extremes) sums_of_rows(z, begin, end, channels, about, chunk, mine, low, high, 0, 1);
        else sums_of_rows(z, begin, end, channels, about, chunk, mine, low, high, 0, 0);
    }
    add_pieces(sums, pieces, channels);
    for (long c = 0; c < channels; c++) {
        double off = sums[c] / rows, variance = sums[channels + c] / rows - off * off;
        mean[c] = (float)(about[c] + off);
        inverse_std[c] = (float)(1 / sqrt((variance > 0 ? variance : 0) + eps));
        scale[c] = weight[c] * inverse_std[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
    if (with_extremes) {
        float *low = shift + channels, *high = low + channels;
        for (long c = 0; c < channels; c++) low[c] = FLT_MAX, high[c] = -FLT_MAX;
        for (long piece = 0; piece < pieces.count; piece++)
            for (long c = 0; c < channels; c++) {
                const float *theirs = chunks + piece * 4 * channels + 2 * channels;
                low[c] = theirs[c] < low[c] ? theirs[c] : low[c];
                high[c] = theirs[channels + c] > high[c] ? theirs[channels + c] : high[c];
            }
    }
    return free(sums), free(chunks), 1;
}

INLINE void forward_one(const void *z, void *y, long i, float scale, float shift, Grid grid, int activation, int binary,
                        int z_is_bf16, int y_is_bf16)
{
    store(y, i, on_grid(load(z, i, z_is_bf16) * scale + shift, grid, activation, binary), y_is_bf16);
}

INLINE void forward(const void *z, void *y, long begin, long end, long channels, const float *scale,
                    const float *shift, Grid grid, int activation, int binary, int z_is_bf16, int y_is_bf16)
{
    for (long row = begin; row < end; row++)
        if (channels % 16) {  // see through_grid
#pragma omp simd simdlen(8)
            for (long c = 0; c < channels; c++)
                forward_one(z, y, row * channels + c, scale[c], shift[c], grid, activation, binary, z_is_bf16, y_is_bf16);
        } else {
#pragma omp simd
            for (long c = 0; c < channels; c++)
                forward_one(z, y, row * channels + c, scale[c], shift[c], grid, activation, binary, z_is_bf16, y_is_bf16);
        }
}

// offset may be NULL: 0.
void normalize_quantize(const void *z, void *y, long rows, long channels, const float *statistics, const float *step,
                        const float *offset, const Options *options)
{
    const float *scale = statistics + 2 * channels, *shift = scale + channels;
    Grid grid = make_grid(step, offset, options);
    Pieces pieces = cut(rows);
#pragma omp parallel for schedule(static) if (rows * channels >= PARALLEL_FROM)
    for (long piece = 0; piece < pieces.count; piece++) {
        long begin = piece * pieces.rows, end = shorter(begin + pieces.rows, rows);
        DISPATCH(forward, z, y, begin, end, channels, scale, shift, grid)
    }
}

// One value of through_grid: adds to the two sums of its channel.
INLINE Gradient through_one(const void *z, const void *grad, void *grad_x, long i, float mean, float inverse_std,
                            float scale, float shift, Grid grid, float *sum, float *product, int activation, int binary,
                            int z_is_bf16, int y_is_bf16)
{
    float here = load(z, i, z_is_bf16);
    Gradient g = gradient(here * scale + shift, load(grad, i, y_is_bf16), grid, activation, binary);
    *sum += g.by_x;
    *product += g.by_x * (here - mean) * inverse_std;
    store(grad_x, i, g.by_x, z_is_bf16);
    return g;
}

// Gradient by x, in place of that by y where the types agree; chunk sums of it and of it times (z - mean) inverse_std.
// gcc's vectors have 32 channels where numbers are bfloat16 and registers have 512 bits, and it computes what fills none
// one by one, five times as slowly as in vectors of eight (docs/log.md). All widths are multiples of eight.
INLINE void through_grid(const void *z, const void *grad, void *grad_x, long begin, long end, long channels,
                         const float *mean, const float *inverse_std, const float *scale, const float *shift, Grid grid,
                         float *chunk, double *sums, double *grid_sums, int activation, int binary, int z_is_bf16,
                         int y_is_bf16)
{
    for (long start = begin; start < end; start += CHUNK) {
        for (long row = start; row < shorter(start + CHUNK, end); row++) {
            float step_sum = 0, offset_sum = 0;
            if (channels % 32) {
#pragma omp simd simdlen(8) reduction(+ : step_sum, offset_sum)
                for (long c = 0; c < channels; c++) {
                    Gradient g = through_one(z, grad, grad_x, row * channels + c, mean[c], inverse_std[c], scale[c],
                                             shift[c], grid, &chunk[c], &chunk[channels + c], activation, binary,
                                             z_is_bf16, y_is_bf16);
                    step_sum += g.by_step;
                    offset_sum -= g.by_offset;
                }
            } else {
#pragma omp simd reduction(+ : step_sum, offset_sum)
                for (long c = 0; c < channels; c++) {
                    Gradient g = through_one(z, grad, grad_x, row * channels + c, mean[c], inverse_std[c], scale[c],
                                             shift[c], grid, &chunk[c], &chunk[channels + c], activation, binary,
                                             z_is_bf16, y_is_bf16);
                    step_sum += g.by_step;
                    offset_sum -= g.by_offset;
                }
            }
            grid_sums[0] += step_sum;
            grid_sums[1] += offset_sum;
        }
        add_chunk(chunk, sums, channels);
    }
}

// The gradient by z = (grad_x - its mean - normalized z times the mean of their product) scale, as a grad_x + b z + c.
INLINE void through_statistics(const void *z, void *grad, long begin, long end, long channels, const float *a,
                               const float *b, const float *c, int z_is_bf16)
{
    for (long row = begin; row < end; row++)
#pragma omp simd
        for (long k = 0; k < channels; k++) {
            long i = row * channels + k;
            store(grad, i, load(grad, i, z_is_bf16) * a[k] + load(z, i, z_is_bf16) * b[k] + c[k], z_is_bf16);
        }
}

// Gradients by z (may be in place of grad, the one by y, if the types agree), by the weight and bias of the batch norm,
// by the step size (times grad_scale, its sign included) and by the offset (or NULL). Returns 0 without memory.
int normalize_quantize_backward(const void *z, const void *grad, void *grad_z, long rows, long channels,
                                const float *statistics, const float *step, const float *offset,
                                const Options *options, float grad_scale, float *grad_weight, float *grad_bias,
                                float *grad_step, float *grad_offset)
{
    const float *mean = statistics, *inverse_std = mean + channels;
    const float *scale = inverse_std + channels, *shift = scale + channels;
    Grid grid = make_grid(step, offset, options);
    Pieces pieces = cut(rows);
    double *sums = calloc(pieces.count * 2 * channels, sizeof(double)), grid_sums[MAX_PIECES][2] = {{0}};
    float *chunks = calloc((pieces.count * 2 + 2) * channels, sizeof(float));
    if (!sums || !chunks) return free(sums), free(chunks), 0;
#pragma omp parallel for schedule(static) if (rows * channels >= PARALLEL_FROM)
    for (long piece = 0; piece < pieces.count; piece++) {
        long begin = piece * pieces.rows, end = shorter(begin + pieces.rows, rows);
        float *chunk = chunks + piece * 2 * channels;
        double *mine = sums + piece * 2 * channels;
        double *by_grid = grid_sums[piece];
        DISPATCH(through_grid, z, grad, grad_z, begin, end, channels, mean, inverse_std, scale, shift, grid, chunk,
                 mine, by_grid)
    }
    add_pieces(sums, pieces, channels);
    float *b = chunks + pieces.count * 2 * channels, *constant = b + channels;
    for (long c = 0; c < channels; c++) {
        grad_bias[c] = (float)sums[c];
        grad_weight[c] = (float)sums[channels + c];
        b[c] = -scale[c] * inverse_std[c] * (float)(sums[channels + c] / rows);
        constant[c] = -scale[c] * (float)(sums[c] / rows) - b[c] * mean[c];
    }
#pragma omp parallel for schedule(static) if (rows * channels >= PARALLEL_FROM)
    for (long piece = 0; piece < pieces.count; piece++) {
        long begin = piece * pieces.rows, end = shorter(begin + pieces.rows, rows);
        if (options->x_is_bf16) through_statistics(z, grad_z, begin, end, channels, scale, b, constant, 1);
        else through_statistics(z, grad_z, begin, end, channels, scale, b, constant, 0);
    }
    double step_sum = 0, offset_sum = 0;
    for (long piece = 0; piece < pieces.count; piece++) {
        step_sum += grid_sums[piece][0];
        offset_sum += grid_sums[piece][1];
    }
    *grad_step = (float)(grad_scale * (*step < 0 ? -step_sum : step_sum));
    if (grad_offset) *grad_offset = (float)(offset_sum * grid.step);
    return free(sums), free(chunks), 1;
}
