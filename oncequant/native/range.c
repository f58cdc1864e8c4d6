// The range of BatchQuant (quantizers/batchquant.py): extremes of every channel, their mean over channels, the grid.

#include <float.h>
#include <stdlib.h>

#include "grid.h"

INLINE void extremes_of_rows(const void *z, long begin, long end, long channels, float *low, float *high, int z_is_bf16)
{
    for (long row = begin; row < end; row++)
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float v = load(z, row * channels + c, z_is_bf16);
            low[c] = v < low[c] ? v : low[c];
            high[c] = v > high[c] ? v : high[c];
        }
}

// Least and greatest of each channel of z (rows, channels), channels last: low (channels), high (channels). Returns 0
// without memory.
int channel_extremes(const void *z, int z_is_bf16, long rows, long channels, float *low, float *high)
{
    long pieces = rows * channels < PARALLEL_FROM ? 1 : 16, each = (rows + pieces - 1) / pieces;
    float *found = malloc(pieces * 2 * channels * sizeof(float));
    if (!found) return 0;
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (long piece = 0; piece < pieces; piece++) {
        float *mine = found + piece * 2 * channels;
        for (long c = 0; c < channels; c++) mine[c] = FLT_MAX, mine[channels + c] = -FLT_MAX;
        long begin = piece * each, end = shorter(begin + each, rows);
        if (z_is_bf16) extremes_of_rows(z, begin, end, channels, mine, mine + channels, 1);
        else extremes_of_rows(z, begin, end, channels, mine, mine + channels, 0);
    }
    for (long c = 0; c < channels; c++) low[c] = found[c], high[c] = found[channels + c];
    for (long piece = 1; piece < pieces; piece++)
        for (long c = 0; c < channels; c++) {
            const float *theirs = found + piece * 2 * channels;
            low[c] = theirs[c] < low[c] ? theirs[c] : low[c];
            high[c] = theirs[channels + c] > high[c] ? theirs[channels + c] : high[c];
        }
    free(found);
    return 1;
}

// range (2): the means over channels of the extremes of activation(z scale + shift), extended to 0. scale and shift,
// (channels) each, may be NULL: 1 and 0.
void mean_range(const float *low, const float *high, long channels, const float *scale, const float *shift,
                int activation, float *range)
{
    double low_sum = 0, high_sum = 0;
    for (long c = 0; c < channels; c++) {
        float a = low[c], b = high[c];
        if (scale) {
            float first = a * scale[c] + shift[c], second = b * scale[c] + shift[c];
            a = scale[c] < 0 ? second : first;
            b = scale[c] < 0 ? first : second;
        }
        float at_a = activate(splat(a), activation)[0], at_b = activate(splat(b), activation)[0];
        float least = at_a < at_b ? at_a : at_b;
        if (activation == HARDSWISH && a < -1.5f && b > -1.5f) least = -0.375f;  // its minimum
        low_sum += least;
        high_sum += at_a > at_b ? at_a : at_b;
    }
    range[0] = low_sum < 0 ? (float)(low_sum / channels) : 0;
    range[1] = high_sum > 0 ? (float)(high_sum / channels) : 0;
}

// Step size and offset of the grid over range (2) with the learned parameters of a slot, and the derivative of the step
// size by the first of them.
void range_grid(const float *range, const float *scale, const float *offset, long slot, const Options *options,
                float *step_size, float *zero_point, float *by_scale)
{
    float width = range[1] - range[0], step = 1, zero = 0;
    if (width > 0) {
        step = width / (options->q_max - options->q_min);
        step = step < FLT_EPSILON ? FLT_EPSILON : step;
        zero = options->q_min - rintf(range[0] / step);
        zero = zero < options->q_min ? options->q_min : zero > options->q_max ? options->q_max : zero;
    }
    float power = exp2f(scale[slot]), gamma = log2f(1 + power);
    *step_size = step / gamma;
    *zero_point = zero + offset[slot];
    *by_scale = -*step_size / gamma * power / (1 + power);
}
