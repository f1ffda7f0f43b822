// Matrix products of a few hundred rows and columns, by one thread, from packed factors.
//
// All matrices are row-major. A product reads its factors as Numbers of 32 bits: float32 numbers or,
// with BF16, pairs of bfloat16 numbers that are neighbours along the sum. Sums are float32 in both.
// In bfloat16 the tiles of a processor with AMX take the place of its vectors; factors then end with
// zeros along the sum, up to a whole number of tiles.

#include <string.h>

#include "functions.h"

#if defined(__AVX512F__)
enum { LANES = 16, TILE_ROWS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, TILE_ROWS = 6 };
#else
enum { LANES = 4, TILE_ROWS = 6 };
#endif

// A tile is TILE_ROWS × TILE_COLUMNS sums that stay in registers.
enum { TILE_VECTORS = 2, TILE_COLUMNS = TILE_VECTORS * LANES };

// Factors of a sum that are read for all rows of the result before the next ones: so many rows of
// the second factor's TILE_COLUMNS stay in the first cache.
enum { DEPTH = 128 };

// Most streams of a block, over which gradients are summed in one product. With more of them a weight
// is read for longer, with fewer the results stay in the second cache. 64 are up to a third slower.
#ifndef BLOCK_STREAMS
#ifdef BF16
enum { BLOCK_STREAMS = 128 };
#else
enum { BLOCK_STREAMS = 256 };
#endif
#endif
enum { MAX_ALONG = BLOCK_STREAMS / 2 };

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

#ifdef BF16
#include <immintrin.h>

#if defined(__AMX_BF16__) && !defined(NO_AMX)
#define AMX
enum { SIDE = 16 };  // rows of a tile, and its columns of 32 bits
#endif

typedef uint32_t Number;

// Numbers that hold `count` neighbours; an odd count is padded with a zero.
INLINE int64_t numbers(int64_t count) { return (count + 1) / 2; }

typedef uint32_t Numbers __attribute__((vector_size(LANES * sizeof(Number)), aligned(sizeof(Number))));

INLINE Vector multiply_add(Vector sum, Number factor, Numbers factors)
{
    return (Vector)_mm512_dpbf16_ps(
        (__m512)sum, (__m512bh)_mm512_set1_epi32((int)factor), (__m512bh)factors);
}
#else
typedef float Number;
typedef Vector Numbers;

INLINE int64_t numbers(int64_t count) { return count; }

INLINE Vector multiply_add(Vector sum, Number factor, Numbers factors)
{
    return sum + factor * factors;
}
#endif

// Rows of a matrix that begin `stride` numbers apart, and its forms as a factor: `along`, whose
// Numbers hold neighbours of a row, and `across`, whose Numbers hold neighbours of a column.
typedef struct {
    float *values;
    int64_t stride;
    Number *along;
    int64_t along_stride;
    Number *across;                // of the stride of the values
    const struct Repeated *among;  // the different rows, whose factors are used instead, or NULL
    const int32_t *index;          // if so, the place of each row among them
} Rows;

#define ROW(rows, b) ((rows).values + (b) * (rows).stride)

// Return the rows from `first` on, an even number.
INLINE Rows rows_from(Rows x, int64_t first)
{
    if (x.values != NULL) {
        x.values += first * x.stride;
        x.along += first * x.along_stride;
        x.across += numbers(first) * x.stride;
        x.index += x.among == NULL ? 0 : first;
    }
    return x;
}

static const Rows NO_ROWS;

// Numbers that hold `count` neighbours along a sum, with the zeros at its end.
static int64_t depth_of(int64_t count)
{
#ifdef AMX
    return round_up(numbers(count), SIDE);
#else
    return numbers(count);
#endif
}

// Distance of rows: whole vectors, and no power of two, at which they would share places in caches.
static int64_t row_stride(int64_t columns)
{
    int64_t stride = round_up(columns, 16);
    return stride % 128 ? stride : stride + 16;
}

#ifdef BF16
// Round 16 or fewer numbers of two rows; the second is NULL after the last of an odd number. The
// first `written` Numbers along are written.
INLINE void round_pair(
    const float *even, const float *odd, int64_t count, int64_t written, Number *along,
    Number *along_odd, Number *across)
{
    __mmask16 mask = count < 16 ? (1u << count) - 1 : 0xffff;
    __mmask8 pairs = written < 8 ? (1u << written) - 1 : 0xff;
    __m256i first = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, even));
    __m256i second = _mm256_setzero_si256();
    _mm256_mask_storeu_epi32(along, pairs, first);
    if (odd != NULL) {
        second = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, odd));
        _mm256_mask_storeu_epi32(along_odd, pairs, second);
    }
    __m512i interleaved = _mm512_or_si512(_mm512_cvtepu16_epi32(first),
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
    _mm512_mask_storeu_epi32(across, mask, interleaved);
}

// Round a matrix to its form `along` alone, with zeros after the columns.
static void round_along(int64_t rows, int64_t columns, Rows x)
{
    int64_t depth = 2 * depth_of(columns);
    for (int64_t b = 0; b < rows; b++) {
        uint16_t *along = (uint16_t *)(x.along + b * x.along_stride);
        for (int64_t j = 0; j < columns; j += 16) {
            __mmask16 mask = columns - j < 16 ? (1u << (columns - j)) - 1 : 0xffff;
            __m512 numbers = _mm512_maskz_loadu_ps(mask, ROW(x, b) + j);
            _mm256_storeu_si256((__m256i *)(along + j), (__m256i)_mm512_cvtneps_pbh(numbers));
        }
        for (int64_t j = round_up(columns, 16); j < depth; j += 16)
            _mm256_storeu_si256((__m256i *)(along + j), _mm256_setzero_si256());
    }
}

// Round a matrix to its forms as a factor.
static void round_rows(int64_t rows, int64_t columns, Rows x)
{
    for (int64_t b = 0; b < rows; b += 2) {
        const float *even = ROW(x, b), *odd = even + x.stride;
        Number *along = x.along + b * x.along_stride, *along_odd = along + x.along_stride;
        Number *across = x.across + b / 2 * x.stride;
        int64_t j = 0, depth = depth_of(columns);
        if (b + 1 < rows)
            for (; j + 16 <= columns; j += 16)  // compiled without masks
                round_pair(even + j, odd + j, 16, 8, along + j / 2, along_odd + j / 2, across + j);
        for (; j / 2 < depth; j += 16)
            round_pair(even + j, b + 1 < rows ? odd + j : NULL, columns > j ? columns - j : 0,
                depth - j / 2, along + j / 2, along_odd + j / 2, across + j);
    }
}

// Take memory for the forms as a factor from *next on; each half of the columns may be a factor.
static void take_factors(Number **next, int64_t rows, int64_t columns, Rows *x)
{
    x->along_stride = row_stride(2 * depth_of((columns + 1) / 2));
    x->along = *next;
    x->across = x->along + rows * x->along_stride;
    *next = x->across + depth_of(rows) * x->stride;
}
#else
static void round_rows(int64_t rows, int64_t columns, Rows x)
{
    (void)rows, (void)columns, (void)x;  // the forms are the values
}

static void take_factors(Number **next, int64_t rows, int64_t columns, Rows *x)
{
    (void)next, (void)rows, (void)columns;
    x->along = x->across = x->values;
    x->along_stride = x->stride;
}
#endif

// Take memory for a matrix and its forms as a factor from *next on.
static Rows take_rows(Number **next, int64_t rows, int64_t columns)
{
    Rows x = {.values = (float *)*next, .stride = row_stride(columns)};
    *next += rows * x.stride;
    take_factors(next, rows, columns, &x);
    return x;
}

// Return a matrix whose values exist, with memory for its forms as a factor from *next on.
static Rows rows_of(Number **next, float *values, int64_t rows, int64_t columns)
{
    Rows x = {.values = values, .stride = columns};
    take_factors(next, rows, columns, &x);
    return x;
}

// Return the columns from `first` on; they are rounded separately from those before.
INLINE Rows columns_from(Rows x, int64_t first)
{
    return (Rows){.values = x.values + first, .stride = x.stride, .along = x.along + depth_of(first),
        .along_stride = x.along_stride, .across = x.across + first};
}

// The element (i, p) of a first factor is at values[i * row_stride + p * column_stride].
typedef struct {
    const Number *values;
    int64_t row_stride, column_stride;
} Factor;

INLINE Factor factor(Rows x) { return (Factor){x.along, x.along_stride, 1}; }
INLINE Factor transposed_factor(Rows x) { return (Factor){x.across, 1, x.stride}; }

// The element (p, j) of a second factor is at
// values[(j / TILE_COLUMNS) * panel_stride + p * row_stride + j % TILE_COLUMNS].
typedef struct {
    const Number *values;
    int64_t panel_stride, row_stride;
} Panels;

INLINE Factor rows_of_factor(Factor a, int64_t first)
{
    a.values += first * a.row_stride;
    return a;
}

// What a product is added to: rows that begin `stride` numbers apart, or nothing.
typedef struct {
    const float *values;
    int64_t stride;
} Start;

static const float zeros[TILE_COLUMNS];

static const Start NOTHING = {zeros, 0};

INLINE Start start_at(Start start, int64_t row, int64_t column)
{
    if (start.values != zeros)
        start.values += row * start.stride + column;
    return start;
}

INLINE void multiply_tile(
    int rows, int columns, int64_t depth, Factor a, const Number *b, int64_t row_stride,
    Start start, float *c, int64_t stride)
{
    Vector sums[TILE_ROWS][TILE_VECTORS];
    float partial[TILE_ROWS][TILE_COLUMNS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            sums[i][j] = (Vector){0};
    for (int64_t p = 0; p < depth; p++) {
        Numbers vectors[TILE_VECTORS];
        for (int j = 0; j < TILE_VECTORS; j++)
            vectors[j] = *(const Numbers *)(b + p * row_stride + j * LANES);
        for (int i = 0; i < rows; i++) {
            Number factor = a.values[i * a.row_stride + p * a.column_stride];
            for (int j = 0; j < TILE_VECTORS; j++)
                sums[i][j] = multiply_add(sums[i][j], factor, vectors[j]);
        }
    }
    if (columns < TILE_COLUMNS) {
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < TILE_VECTORS; j++)
                *(Vector *)(partial[i] + j * LANES) = sums[i][j];
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++)
                c[i * stride + j] = start.values[i * start.stride + j] + partial[i][j];
        return;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            *(Vector *)(c + i * stride + j * LANES)
                = *(const Vector *)(start.values + i * start.stride + j * LANES) + sums[i][j];
}

// The result (rows, up to TILE_COLUMNS) of one panel.
INLINE void multiply_panel(
    int columns, int64_t rows, int64_t depth, Factor a, const Number *b, int64_t row_stride,
    Start start, float *c, int64_t stride)
{
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        multiply_tile(TILE_ROWS, columns, depth, rows_of_factor(a, i), b, row_stride,
            start_at(start, i, 0), c + i * stride, stride);
    for (; i + 4 <= rows; i += 4)
        multiply_tile(4, columns, depth, rows_of_factor(a, i), b, row_stride,
            start_at(start, i, 0), c + i * stride, stride);
    for (; i < rows; i++)
        multiply_tile(1, columns, depth, rows_of_factor(a, i), b, row_stride,
            start_at(start, i, 0), c + i * stride, stride);
}

static void multiply_by_vectors(
    int64_t rows, int64_t columns, int64_t depth, Factor a, Panels b, Start start, float *c,
    int64_t stride)
{
    for (int64_t j = 0; j < columns; j += TILE_COLUMNS) {
        const Number *panel = b.values + j / TILE_COLUMNS * b.panel_stride;
        Start from = start_at(start, 0, j);
        for (int64_t p = 0; p < depth; p += DEPTH) {
            Factor part = {a.values + p * a.column_stride, a.row_stride, a.column_stride};
            int64_t part_depth = depth - p < DEPTH ? depth - p : DEPTH;
            const Number *rows_of_b = panel + p * b.row_stride;
            if (columns - j >= TILE_COLUMNS)
                multiply_panel(TILE_COLUMNS, rows, part_depth, part, rows_of_b, b.row_stride,
                    from, c + j, stride);
            else
                multiply_panel((int)(columns - j), rows, part_depth, part, rows_of_b, b.row_stride,
                    from, c + j, stride);
            from = (Start){c + j, stride};
        }
    }
}

#ifdef AMX
#include "tiles.h"
#else
static void configure_tiles(void) {}
static void release_tiles(void) {}
#endif

// c (rows, columns) ← start + a · b, with a (rows, depth) and b (depth, columns) in Numbers.
static void multiply(
    int64_t rows, int64_t columns, int64_t depth, Factor a, Panels b, Start start, float *c,
    int64_t stride)
{
#ifdef AMX
    int64_t whole = rows / SIDE * SIDE;
    multiply_by_tiles(whole, columns, depth, a, b, start, c, stride);
    if (whole == rows)
        return;
    a = rows_of_factor(a, whole);
    start = start_at(start, whole, 0);
    c += whole * stride;
    rows -= whole;
#endif
    multiply_by_vectors(rows, columns, depth, a, b, start, c, stride);
}

// Numbers that a second factor fills as panels, with `count` neighbours along the sum.
static int64_t packed_size(int64_t count, int64_t columns)
{
    return depth_of(count) * round_up(columns, TILE_COLUMNS);
}

// Write the zeros at the end of a panel of `rows` rows; return the panel's end.
static Number *end_panel(int64_t rows, int64_t depth, Number *to)
{
    memset(to, 0, (depth - rows) * TILE_COLUMNS * sizeof(Number));
    return to + (depth - rows) * TILE_COLUMNS;
}

// Write a matrix (rows, columns) of Numbers as panels of `depth` rows.
static void pack(int64_t rows, int64_t columns, int64_t depth, const Number *from, Number *to)
{
    for (int64_t j = 0; j < columns; j += TILE_COLUMNS, to = end_panel(rows, depth, to))
        for (int64_t p = 0; p < rows; p++, to += TILE_COLUMNS)
            if (columns - j >= TILE_COLUMNS)
                memcpy(to, from + p * columns + j, TILE_COLUMNS * sizeof(Number));
            else
                for (int64_t i = 0; i < TILE_COLUMNS; i++)
                    to[i] = i < columns - j ? from[p * columns + j + i] : 0;
}

typedef Number Four __attribute__((vector_size(16), aligned(4)));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t FourIndices __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (FourIndices){__VA_ARGS__})
#endif

// Write the transposed (columns, rows) of a matrix of Numbers, whose rows begin `stride` apart, as
// panels of `depth` rows.
static void pack_transposed(
    int64_t rows, int64_t columns, int64_t depth, const Number *from, int64_t stride, Number *to)
{
    for (int64_t j = 0; j < rows; j += TILE_COLUMNS) {
        for (int64_t i = 0; i < TILE_COLUMNS; i += 4)
            for (int64_t p = 0; p < columns; p += 4) {
                if (j + i + 4 > rows || p + 4 > columns) {
                    for (int64_t q = p; q < p + 4 && q < columns; q++)
                        for (int64_t r = i; r < i + 4; r++)
                            to[q * TILE_COLUMNS + r]
                                = j + r < rows ? from[(j + r) * stride + q] : 0;
                    continue;
                }
                const Number *source = from + (j + i) * stride + p;
                Four a = *(const Four *)source, b = *(const Four *)(source + stride);
                Four c = *(const Four *)(source + 2 * stride);
                Four d = *(const Four *)(source + 3 * stride);
                Four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
                Four ab_high = SHUFFLE(a, b, 2, 6, 3, 7), cd_high = SHUFFLE(c, d, 2, 6, 3, 7);
                Number *target = to + p * TILE_COLUMNS + i;
                *(Four *)target = SHUFFLE(ab, cd, 0, 1, 4, 5);
                *(Four *)(target + TILE_COLUMNS) = SHUFFLE(ab, cd, 2, 3, 6, 7);
                *(Four *)(target + 2 * TILE_COLUMNS) = SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
                *(Four *)(target + 3 * TILE_COLUMNS) = SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
            }
        to = end_panel(columns, depth, to + columns * TILE_COLUMNS);
    }
}
