// Matrix products in bfloat16 by the tiles of a processor with AMX, which products.h includes.
//
// A tile has 16 × 16 places of 32 bits. One instruction multiplies 16 rows of 16 Numbers along the
// sum by as many Numbers of 16 columns, and adds the product to a tile of sums (Intel, Architecture
// Instruction Set Extensions Programming Reference, chapter 3).

// Give the tiles of this thread their shape, until release_tiles.
static void configure_tiles(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shape.row_bytes[tile] = SIDE * sizeof(Number);
        shape.rows[tile] = SIDE;
    }
    _tile_loadconfig(&shape);
}

static void release_tiles(void) { _tile_release(); }

// Write the transposed of 16 × 16 Numbers; rows begin `stride` and `to_stride` Numbers apart.
INLINE void transpose_block(const Number *from, int64_t stride, Number *to, int64_t to_stride)
{
    __m512i a[SIDE], b[SIDE];
    for (int i = 0; i < SIDE; i++)
        a[i] = _mm512_loadu_si512(from + i * stride);
    for (int i = 0; i < SIDE; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
        }
    for (int half = 0; half < SIDE; half += 8)
        for (int i = half; i < half + 4; i++) {
            b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
            b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        __m512i first = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        __m512i second = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        _mm512_storeu_si512(to + i * to_stride, first);
        _mm512_storeu_si512(to + (i + 8) * to_stride, second);
    }
}

// The result (16 or 32 rows, TILE_COLUMNS).
INLINE void multiply_block(
    int rows, int64_t depth, const Number *a, int64_t a_stride, const Number *b, int64_t b_stride,
    Start start, float *c, int64_t stride)
{
    int64_t a_bytes = a_stride * sizeof(Number), b_bytes = b_stride * sizeof(Number);
    int64_t start_bytes = start.stride * sizeof(float), bytes = stride * sizeof(float);
    const float *lower = start.values + SIDE * start.stride;
    _tile_loadd(0, start.values, start_bytes);
    _tile_loadd(1, start.values + SIDE, start_bytes);
    if (rows > SIDE) {
        _tile_loadd(2, lower, start_bytes);
        _tile_loadd(3, lower + SIDE, start_bytes);
    }
    for (int64_t p = 0; p < depth; p += SIDE) {
        // A part of the result to the right, whose rows are far from each other in memory.
        for (int64_t i = p * rows / depth; i < (p + SIDE) * rows / depth; i++) {
            __builtin_prefetch(c + i * stride + TILE_COLUMNS, 1);
            __builtin_prefetch(c + i * stride + TILE_COLUMNS + SIDE, 1);
        }
        _tile_loadd(4, a + p, a_bytes);
        _tile_loadd(6, b + p * b_stride, b_bytes);
        _tile_loadd(7, b + p * b_stride + SIDE, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (rows > SIDE) {
            _tile_loadd(5, a + SIDE * a_stride + p, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + SIDE, bytes);
    if (rows > SIDE) {
        _tile_stored(2, c + SIDE * stride, bytes);
        _tile_stored(3, c + SIDE * stride + SIDE, bytes);
    }
}

// The result (16 or 32 rows, up to TILE_COLUMNS).
INLINE void multiply_columns(
    int rows, int64_t columns, int64_t depth, const Number *a, int64_t a_stride, const Number *b,
    int64_t b_stride, Start start, float *c, int64_t stride)
{
    if (columns == TILE_COLUMNS) {
        multiply_block(rows, depth, a, a_stride, b, b_stride, start, c, stride);
        return;
    }
    float sums[2 * SIDE][TILE_COLUMNS];
    multiply_block(rows, depth, a, a_stride, b, b_stride, NOTHING, sums[0], TILE_COLUMNS);
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            c[i * stride + j] = start.values[i * start.stride + j] + sums[i][j];
}

// The same as multiply, with a whole number of SIDEs of rows and along the sum.
static void multiply_by_tiles(
    int64_t rows, int64_t columns, int64_t depth, Factor a, Panels b, Start start, float *c,
    int64_t stride)
{
    enum { STRIDE = MAX_ALONG + SIDE };  // no power of two, see row_stride
    Number transposed[2 * SIDE * STRIDE] __attribute__((aligned(64)));
    for (int64_t i = 0; i < rows; i += 2 * SIDE) {
        int count = rows - i < 2 * SIDE ? SIDE : 2 * SIDE;
        const Number *block = a.values + i * a.row_stride;
        int64_t block_stride = a.row_stride;
        if (a.column_stride != 1) {
            block_stride = STRIDE;
            for (int64_t p = 0; p < depth; p += SIDE)
                for (int64_t r = 0; r < count; r += SIDE)
                    transpose_block(a.values + i + r + p * a.column_stride, a.column_stride,
                        transposed + r * STRIDE + p, STRIDE);
            block = transposed;
        }
        for (int64_t j = 0; j < columns; j += TILE_COLUMNS) {
            const Number *panel = b.values + j / TILE_COLUMNS * b.panel_stride;
            int64_t part = columns - j < TILE_COLUMNS ? columns - j : TILE_COLUMNS;
            Start from = start_at(start, i, j);
            if (count > SIDE)
                multiply_columns(2 * SIDE, part, depth, block, block_stride, panel, b.row_stride,
                    from, c + i * stride + j, stride);
            else
                multiply_columns(SIDE, part, depth, block, block_stride, panel, b.row_stride,
                    from, c + i * stride + j, stride);
        }
    }
}
