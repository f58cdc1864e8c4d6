// Training batch norm, a sum, an activation and fake-quantization in one pass, channels last, and their gradient: all that
// is between two convolutions of a residual network.
//
//     x = activation(z scale + shift [+ other | + other other_scale + other_shift])        y = x or fake_quantize(x)
//
// z and other hold `count` rows (batch and positions) of `channels` numbers; their `statistics` are those of
// batch_norm_statistics. x has readers: each gets a y of its own, quantized by its own grid, or x itself. In the
// backward pass the gradients of all of them are added, and x is computed again from its parts. How rows are computed in
// vectors: rows.h.

#include <stdlib.h>

#include "rows.h"

#define MAX_READERS 4

enum { ALONE, PLAIN, NORMALIZED };  // what there is beside z

// What join.py's `_readers` fills in.
typedef struct {
    void *y;                     // or the gradient by it
    const float *step, *offset;  // step NULL: it reads x itself; offset NULL: 0
    Options options;             // q_min, q_max, binary, y_is_bf16
    float grad_scale;
    float *grad_step, *grad_offset;  // of the backward pass: grad_scale d / d step, d / d offset or NULL
} Reader;

typedef struct {
    const void *z, *other;
    int kind, activation, is_bf16;
    const float *statistics, *other_statistics;  // of the places of a group
    long period;
    const Reader *readers;
    int count;  // of readers
    Grid grids[MAX_READERS];
} Parts;

// z, other and the sum of their normalized values: some lanes from number i on, at place p of its group.
INLINE Floats sum_of(const Parts *parts, Floats *z, Floats *other, long i, long p, long lanes)
{
    const float *scale = parts->statistics + 2 * parts->period + p;
    *z = load_lanes(parts->z, i, lanes, parts->is_bf16);
    Floats sum = *z * load_lanes(scale, 0, LANES, 0) + load_lanes(scale + parts->period, 0, LANES, 0);
    if (parts->kind == ALONE) return sum;
    *other = load_lanes(parts->other, i, lanes, parts->is_bf16);
    if (parts->kind == PLAIN) return sum + *other;
    scale = parts->other_statistics + 2 * parts->period + p;
    return sum + (*other * load_lanes(scale, 0, LANES, 0) + load_lanes(scale + parts->period, 0, LANES, 0));
}

INLINE Floats activated(Floats sum, int activation)
{
    if (activation == RELU) return activate(sum, RELU);
    return activation == HARDSWISH ? activate(sum, HARDSWISH) : sum;
}

INLINE void forward(const Parts *parts, long i, long p, long lanes)
{
    Floats z, other, x = activated(sum_of(parts, &z, &other, i, p, lanes), parts->activation), y = x;
    for (int r = 0; r < parts->count; r++) {
        const Reader *reader = &parts->readers[r];
        if (!reader->step) y = x;
        else if (reader->options.binary) y = on_grid(x, parts->grids[r], NO_ACTIVATION, 1);
        else y = on_grid(x, parts->grids[r], NO_ACTIVATION, 0);
        store_lanes(reader->y, i, y, lanes, reader->options.y_is_bf16);
    }
}

static void forward_piece(const Parts *parts, Piece piece)
{
    long period = parts->period;
    for (long group = piece.begin; group < piece.end; group++)
        for (long p = 0; p < period; p += LANES) forward(parts, group * period + p, p, LANES);
    for (long p = 0; p < piece.rest; p += LANES)
        forward(parts, piece.end * period + p, p, shorter(LANES, piece.rest - p));
}

// Sums over what a piece has at some lanes.
typedef struct {
    Floats gradient, product, other;  // see sums_of_piece
    Floats step[MAX_READERS], offset[MAX_READERS];
} Sums;

INLINE Floats normalized(Floats z, const float *statistics, long period)
{
    return (z - load_lanes(statistics, 0, LANES, 0)) * load_lanes(statistics + period, 0, LANES, 0);
}

INLINE void backward(const Parts *parts, void *grad_sum, long i, long p, long lanes, Sums *sums)
{
    Floats z, other, sum = sum_of(parts, &z, &other, i, p, lanes), g = {0};
    Floats x = activated(sum, parts->activation);
    for (int r = 0; r < parts->count; r++) {
        const Reader *reader = &parts->readers[r];
        Floats grad = load_lanes(reader->y, i, lanes, reader->options.y_is_bf16);
        if (!reader->step) {
            g += grad;
            continue;
        }
        Gradient by;
        if (reader->options.binary) by = gradient(x, grad, parts->grids[r], NO_ACTIVATION, 1);
        else by = gradient(x, grad, parts->grids[r], NO_ACTIVATION, 0);
        g += by.by_x;
        sums->step[r] += by.by_step;
        sums->offset[r] -= by.by_offset;
    }
    if (parts->activation == RELU) g = through_activation(g, sum, RELU);
    else if (parts->activation == HARDSWISH) g = through_activation(g, sum, HARDSWISH);
    sums->gradient += g;
    sums->product += g * normalized(z, parts->statistics + p, parts->period);
    if (parts->kind == NORMALIZED) sums->other += g * normalized(other, parts->other_statistics + p, parts->period);
    store_lanes(grad_sum, i, g, lanes, parts->is_bf16);
}

static void add(const Sums *sums, double *totals, double *grid_sums, long p, long lanes, const Parts *parts)
{
    for (long l = 0; l < lanes; l++) {
        totals[p + l] += sums->gradient[l];
        totals[parts->period + p + l] += sums->product[l];
        totals[2 * parts->period + p + l] += sums->other[l];
    }
    for (int r = 0; r < parts->count; r++) {
        grid_sums[2 * r] += sum_of_lanes(sums->step[r]);
        grid_sums[2 * r + 1] += sum_of_lanes(sums->offset[r]);
    }
}

// Writes the gradient by the sum, and adds up for every place of a group: it, and it times each of the two normalized
// parts, (3, period); and for every reader the gradients by its step and offset.
static void sums_of_piece(const Parts *parts, void *grad_sum, Piece piece, double *totals, double *grid_sums)
{
    long period = parts->period;
    for (long start = piece.begin; start < piece.end; start += CHUNK)
        for (long p = 0; p < period; p += LANES) {
            Sums sums = {{0}};
            for (long group = start; group < shorter(start + CHUNK, piece.end); group++)
                backward(parts, grad_sum, group * period + p, p, LANES, &sums);
            add(&sums, totals, grid_sums, p, LANES, parts);
        }
    for (long p = 0; p < piece.rest; p += LANES) {
        Sums sums = {{0}};
        long lanes = shorter(LANES, piece.rest - p);
        backward(parts, grad_sum, piece.end * period + p, p, lanes, &sums);
        add(&sums, totals, grid_sums, p, lanes, parts);
    }
}

// The gradient by z: a g + b z + c, where g is that by the sum; grad_z may be where g is.
INLINE void through_norm(const void *z, const void *g, void *grad_z, long i, const float *abc, long period, long lanes,
                         int is_bf16)
{
    Floats a = load_lanes(abc, 0, LANES, 0), b = load_lanes(abc + period, 0, LANES, 0);
    Floats c = load_lanes(abc + 2 * period, 0, LANES, 0);
    Floats grad = load_lanes(g, i, lanes, is_bf16) * a + load_lanes(z, i, lanes, is_bf16) * b + c;
    store_lanes(grad_z, i, grad, lanes, is_bf16);
}

INLINE void through_norm_of_piece(const void *z, const void *g, void *grad_z, Piece piece, long period,
                                  const float *abc, int is_bf16)
{
    for (long group = piece.begin; group < piece.end; group++)
        for (long p = 0; p < period; p += LANES)
            through_norm(z, g, grad_z, group * period + p, abc + p, period, LANES, is_bf16);
    for (long p = 0; p < piece.rest; p += LANES)
        through_norm(z, g, grad_z, piece.end * period + p, abc + p, period, shorter(LANES, piece.rest - p), is_bf16);
}

// By channel, a, b and c of the gradient of a training batch norm by its input z, a g + b z + c, given the gradient g by
// its result: (g - its mean - normalized z times the mean of their product) scale. `sums` are (2, channels) of g and of
// that product, `statistics` those of batch_norm_statistics.
static void factors(float *abc, const float *statistics, const double *sums, Rows rows)
{
    long channels = rows.channels;
    const float *mean = statistics, *inverse_std = mean + channels, *scale = inverse_std + channels;
    float *a = abc, *b = a + channels, *constant = b + channels;
    for (long c = 0; c < channels; c++) {
        a[c] = scale[c];
        b[c] = -scale[c] * inverse_std[c] * (float)(sums[channels + c] / rows.rows);
        constant[c] = -scale[c] * (float)(sums[c] / rows.rows) - b[c] * mean[c];
    }
}

// With statistics of every place of a group, and room for `more` lines of places behind them; NULL without memory.
static Parts parts_of(const void *z, const void *other, int activation, int is_bf16, const float *statistics,
                      const float *other_statistics, const Reader *readers, int count, Rows rows, long more)
{
    int kind = !other ? ALONE : other_statistics ? NORMALIZED : PLAIN;
    float *places = malloc((8 + more) * rows.period * sizeof(float)), *other_places = places + 4 * rows.period;
    Parts parts = {.z = z, .other = other, .kind = kind, .activation = activation, .is_bf16 = is_bf16};
    parts.statistics = places, parts.other_statistics = other_places, parts.period = rows.period;
    parts.readers = readers, parts.count = count;
    if (!places) return parts;
    repeat(places, statistics, 4, rows);
    repeat(places + 4 * rows.period, other_statistics ? other_statistics : statistics, 4, rows);
    for (int r = 0; r < count; r++)
        if (readers[r].step) parts.grids[r] = make_grid(readers[r].step, readers[r].offset, &readers[r].options);
    return parts;
}

// other may be NULL, and so may its statistics: it is added as it is. z and other are both bfloat16 or both float.
// Returns 0 without memory, or for more than MAX_READERS.
int join(const void *z, const void *other, long count, long channels, const float *statistics,
         const float *other_statistics, int activation, int is_bf16, const Reader *readers, int reader_count)
{
    if (reader_count > MAX_READERS) return 0;
    Rows rows = rows_of(count, channels);
    Parts parts = parts_of(z, other, activation, is_bf16, statistics, other_statistics, readers, reader_count, rows, 0);
    if (!parts.statistics) return 0;
#pragma omp parallel for schedule(static) if (count * channels >= PARALLEL_FROM)
    for (long p = 0; p < rows.pieces; p++) {
        Piece piece = piece_of(rows, p);
        forward_piece(&parts, piece);
    }
    return free((void *)parts.statistics), 1;
}

// Gradients by z, by other (if there is one), by weight and bias of both batch norms and by the grids: grad_norm is
// (3, channels), by either bias, by the weight of z's and by that of other's.
int join_backward(const void *z, const void *other, void *grad_z, void *grad_other, long count, long channels,
                  const float *statistics, const float *other_statistics, int activation, int is_bf16,
                  const Reader *readers, int reader_count, float *grad_norm)
{
    if (reader_count > MAX_READERS) return 0;
    Rows rows = rows_of(count, channels);
    long period = rows.period;
    Parts parts = parts_of(z, other, activation, is_bf16, statistics, other_statistics, readers, reader_count, rows, 12);
    double *sums = calloc(rows.pieces * 3 * period + 3 * channels, sizeof(double));
    double grid_sums[MAX_PIECES][2 * MAX_READERS] = {{0}};
    if (!parts.statistics || !sums) return free((void *)parts.statistics), free(sums), 0;
    void *grad_sum = parts.kind == PLAIN ? grad_other : grad_z;
#pragma omp parallel for schedule(static) if (count * channels >= PARALLEL_FROM)
    for (long p = 0; p < rows.pieces; p++) {
        double *mine = sums + p * 3 * period, *by_grid = grid_sums[p];
        Piece piece = piece_of(rows, p);
        sums_of_piece(&parts, grad_sum, piece, mine, by_grid);
    }
    double *total = sums + rows.pieces * 3 * period;
    fold(total, sums, 3, rows);
    for (long c = 0; c < 3 * channels; c++) grad_norm[c] = (float)total[c];
    float *factor = (float *)parts.statistics + 8 * period, *of_channels = factor + 6 * period;
    factors(of_channels, statistics, total, rows);
    for (long c = 0; c < channels; c++) total[channels + c] = total[2 * channels + c];
    factors(of_channels + 3 * channels, other_statistics ? other_statistics : statistics, total, rows);
    repeat(factor, of_channels, 6, rows);
#pragma omp parallel for schedule(static) if (count * channels >= PARALLEL_FROM)
    for (long p = 0; p < rows.pieces; p++) {
        Piece piece = piece_of(rows, p);
        const float *of_other = factor + 3 * period;
        if (parts.kind == NORMALIZED && is_bf16)
            through_norm_of_piece(other, grad_sum, grad_other, piece, period, of_other, 1);
        else if (parts.kind == NORMALIZED)
            through_norm_of_piece(other, grad_sum, grad_other, piece, period, of_other, 0);
        if (is_bf16) through_norm_of_piece(z, grad_sum, grad_z, piece, period, factor, 1);
        else through_norm_of_piece(z, grad_sum, grad_z, piece, period, factor, 0);
    }
    for (int r = 0; r < reader_count; r++) {
        if (!readers[r].step) continue;
        double step_sum = 0, offset_sum = 0;
        for (long p = 0; p < rows.pieces; p++) step_sum += grid_sums[p][2 * r], offset_sum += grid_sums[p][2 * r + 1];
        *readers[r].grad_step = (float)(readers[r].grad_scale * (*readers[r].step < 0 ? -step_sum : step_sum));
        if (readers[r].grad_offset) *readers[r].grad_offset = (float)(offset_sum * parts.grids[r].step);
    }
    return free((void *)parts.statistics), free(sums), 1;
}
