// Gradient of a depthwise convolution by its weight, channels last: x (N, H, W, C) and grad (N, H', W', C) give
// grad_weight (C, kernel, kernel). Odd kernels up to 7, padded by half; C is a multiple of 8.
//
// A block of channels is a vector. For every image and row of the kernel, the sums of that row stay in registers while
// all positions are visited. A block is summed by one thread, so the number of threads changes nothing.

// Sums need no agreement with anything to the last bit.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#define INLINE static inline __attribute__((always_inline))
#define MAX_KERNEL 7
#define LANES 16

typedef struct {
    long images, channels, height, width, out_height, out_width, stride;
} Shape;

typedef float Wide __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float Half __attribute__((vector_size(2 * LANES), aligned(4)));

// sums[j] += the sum over positions of grad x, shifted by row i and column j of the kernel
#define ROW(VECTOR)                                                                                               \
    INLINE void row_##VECTOR(const float *x, const float *grad, double *sums, Shape s, int i, int kernel)         \
    {                                                                                                             \
        VECTOR total[MAX_KERNEL] = {{0}};                                                                         \
        const int lanes = sizeof(VECTOR) / sizeof(float);                                                         \
        for (long out_y = 0; out_y < s.out_height; out_y++) {                                                     \
            long y = out_y * s.stride + i - kernel / 2;                                                           \
            if (y < 0 || y >= s.height) continue;                                                                 \
            const float *x_row = x + y * s.width * s.channels, *g_row = grad + out_y * s.out_width * s.channels;  \
            for (long out_x = 0; out_x < s.out_width; out_x++) {                                                  \
                long left = out_x * s.stride - kernel / 2;                                                        \
                VECTOR g = *(const VECTOR *)(g_row + out_x * s.channels);                                         \
                int inside = left >= 0 && left + kernel <= s.width;                                               \
                _Pragma("GCC unroll 7") for (int j = 0; j < kernel; j++)                                          \
                    if (inside || (left + j >= 0 && left + j < s.width))                                          \
                        total[j] += g * *(const VECTOR *)(x_row + (left + j) * s.channels);                       \
            }                                                                                                     \
        }                                                                                                         \
        for (int j = 0; j < kernel; j++)                                                                          \
            for (int lane = 0; lane < lanes; lane++) sums[j * LANES + lane] += total[j][lane];                    \
    }
ROW(Wide)
ROW(Half)

INLINE void block(const float *x, const float *grad, float *grad_weight, Shape s, int kernel, int lanes)
{
    double sums[MAX_KERNEL * MAX_KERNEL * LANES] = {0};
    for (long n = 0; n < s.images; n++) {
        const float *image = x + n * s.height * s.width * s.channels;
        const float *upstream = grad + n * s.out_height * s.out_width * s.channels;
        for (int i = 0; i < kernel; i++)
            if (lanes == LANES) row_Wide(image, upstream, sums + i * kernel * LANES, s, i, kernel);
            else row_Half(image, upstream, sums + i * kernel * LANES, s, i, kernel);
    }
    for (int tap = 0; tap < kernel * kernel; tap++)
        for (int lane = 0; lane < lanes; lane++)
            grad_weight[lane * kernel * kernel + tap] = (float)sums[tap * LANES + lane];
}

static void block_of(const float *x, const float *grad, float *grad_weight, Shape s, int kernel, int lanes)
{
    if (kernel == 3) block(x, grad, grad_weight, s, 3, lanes);  // a constant, for loops to unroll
    else if (kernel == 5) block(x, grad, grad_weight, s, 5, lanes);
    else block(x, grad, grad_weight, s, 7, lanes);
}

void depthwise_weight_gradient(const float *x, const float *grad, float *grad_weight, long images, long channels,
                               long height, long width, long out_height, long out_width, int kernel, int stride)
{
    Shape s = {images, channels, height, width, out_height, out_width, stride};
#pragma omp parallel for schedule(dynamic)
    for (long c = 0; c < channels; c += LANES) {
        int lanes = channels - c < LANES ? LANES / 2 : LANES;
        block_of(x + c, grad + c, grad_weight + c * kernel * kernel, s, kernel, lanes);
    }
}
