// The built-in cells over whole sequences: the part that takes one step after another.
//
// rnn/recurrences.py calls rnn_sequence; rnn.cells has the equations and the names. K is the number of
// networks, T that of time steps, B that of streams, n the state size, m = g · n the columns of the
// maps of g gates and candidates. Arrays have the shape (K, T, B, columns), and d_… are gradients of
// the loss. wx is the product of the inputs.
//
// Streams do not depend on each other: threads take chunks of them, without waiting for others.

#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "products.h"

enum { GATED, GRU, LSTM };

#ifdef BF16
typedef uint16_t Input;
INLINE float load(const Input *x) { return (union { uint32_t i; float f; }){.i = (uint32_t)*x << 16}.f; }
#else
typedef float Input;
INLINE float load(const Input *x) { return *x; }
#endif

// Matrices (K, rows, columns) of weights, or of their transposed ones (K, columns, rows).
typedef struct {
    const float *values;  // NULL if the cell has no such map
    int64_t rows, columns, is_transposed;
    int64_t next;  // distance of two networks
} Weight;

typedef struct {
    int64_t cell, count, steps, streams, n, threads;  // K, T, B, n
    int64_t gates, keeps;  // g; whether results of every step are kept for the backward pass
    int64_t has_state_gate, has_forget_gate;
    // What a map reads: the state, h' of the state, x', and u in the gates.
    Weight recurrent, input_gate, input, state_gate, forget_gate;
    const float *x;                // (n)
    const Input *wx;               // (m), or (2n) with an input gate
    const float *bias;             // (K, m); in a GRU (K, 4n), the last for the inputs of the candidate
    const float *gate_bias;        // (K, 2n): of an input gate
    const float *state, *memory;   // (K, B, n) before the first step
    float *states, *memories;      // (n)
    float *results;                // gates and candidates (m, and n more)
    float *gated_x, *gated_h, *i;  // (n), (n), (2n) with an input gate
    // The backward pass.
    const float *d_states, *d_gated_h;  // (n)
    const float *d_last_memory;         // (K, B, n)
    float *d_results;                   // of the map of the state, and of the inputs but in a GRU (m)
    float *d_recurrent;                 // (n): before the candidate of a GRU, of the recurrent map
    float *d_wx, *d_x;                  // (2n) and (n) with an input gate
    float *d_state, *d_memory;          // (K, B, n)
} Sequence;

// A chunk of the streams of a network, and memory of its thread.
typedef struct {
    const Sequence *sequence;
    int64_t network, first, streams;
    const Number *recurrent, *input_gate, *input, *state_gate, *forget_gate;  // packed weights
    Number *rounded;
    float *du, *d_previous, *d_memory, *d_product;
} Chunk;

// ------------------------------------------------------------------------------ arrays and products

// Return the chunk's first row of an array (K, steps, B, columns) at a step.
INLINE float *rows_at(const Chunk *chunk, const float *array, int64_t steps, int64_t t, int64_t columns)
{
    const Sequence *s = chunk->sequence;
    return (float *)array + ((chunk->network * steps + t) * s->streams + chunk->first) * columns;
}

// The same in an array (K, T, B, columns).
INLINE float *at(const Chunk *chunk, const float *array, int64_t t, int64_t columns)
{
    return rows_at(chunk, array, chunk->sequence->steps, t, columns);
}

// Return the chunk's products of the inputs at a step.
INLINE const Input *wx_at(const Chunk *chunk, int64_t t, int64_t columns)
{
    const Sequence *s = chunk->sequence;
    return s->wx + ((chunk->network * s->steps + t) * s->streams + chunk->first) * columns;
}

// The same in an array that has one step where results are not kept.
INLINE float *kept_at(const Chunk *chunk, const float *array, int64_t t, int64_t columns)
{
    const Sequence *s = chunk->sequence;
    return rows_at(chunk, array, s->keeps ? s->steps : 1, s->keeps ? t : 0, columns);
}

// Return the state before a step, or the memory.
INLINE const float *before(const Chunk *chunk, const float *first, const float *all, int64_t t)
{
    int64_t n = chunk->sequence->n;
    return t ? at(chunk, all, t - 1, n) : rows_at(chunk, first, 1, 0, n);
}

// Return the rows of a matrix as a first factor.
static Factor as_factor(const Chunk *chunk, const float *values, int64_t stride, int64_t columns)
{
#ifdef BF16
    Rows rows = {.values = (float *)values, .stride = stride, .along = chunk->rounded,
        .along_stride = row_stride(depth_of(columns))};
    round_along(chunk->streams, columns, rows);
    return factor(rows);
#else
    (void)chunk, (void)columns;
    return (Factor){values, stride, 1};
#endif
}

// c (streams, columns) ← start + a (streams, inputs) · W
static void apply(
    const Chunk *chunk, const float *a, int64_t a_stride, int64_t inputs, const Number *packed,
    int64_t columns, Start start, float *c, int64_t stride)
{
    int64_t depth = depth_of(inputs);
    multiply(chunk->streams, columns, depth, as_factor(chunk, a, a_stride, inputs),
        (Panels){packed, depth * TILE_COLUMNS, TILE_COLUMNS}, start, c, stride);
}

// ------------------------------------------------------------------------------ GRU

static void gru_forward(const Chunk *chunk, int64_t t)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n;
    const float *old = before(chunk, s->state, s->states, t);
    float *results = kept_at(chunk, s->results, t, 4 * n);
    const float *bias = s->bias + chunk->network * 4 * n;
    apply(chunk, old, n, n, chunk->recurrent, 3 * n, (Start){bias, 0}, results, 4 * n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const Input *wx = wx_at(chunk, t, 3 * n) + b * 3 * n;
        const float *h = old + b * n;
        float *r = results + b * 4 * n, *state = at(chunk, s->states, t, n) + b * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            r[j] = logistic(load(wx + j) + r[j]);
            float z = logistic(load(wx + n + j) + r[n + j]);
            float u = fast_tanh(load(wx + 2 * n + j) + bias[3 * n + j] + r[j] * r[2 * n + j]);
            r[n + j] = z;
            r[3 * n + j] = u;
            state[j] = u + z * (h[j] - u);
        }
    }
}

static void gru_backward(const Chunk *chunk, int64_t t)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n;
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *h = before(chunk, s->state, s->states, t) + b * n;
        const float *r = at(chunk, s->results, t, 4 * n) + b * 4 * n;
        const float *dy = at(chunk, s->d_states, t, n) + b * n;
        float *d_previous = chunk->d_previous + b * n;
        float *d_product = chunk->d_product + b * 3 * n;
        float *d = at(chunk, s->d_results, t, 3 * n) + b * 3 * n;
        float *d_recurrent = at(chunk, s->d_recurrent, t, n) + b * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float z = r[n + j], u = r[3 * n + j], dh = d_previous[j] + dy[j];
            float du = dh * (1.0f - z) * (1.0f - u * u);
            float dz = through_logistic(dh * (h[j] - u), z);
            float dr = through_logistic(du * r[2 * n + j], r[j]);
            d_previous[j] = dh * z;
            d[j] = d_product[j] = dr;
            d[n + j] = d_product[n + j] = dz;
            d[2 * n + j] = du;
            d_recurrent[j] = d_product[2 * n + j] = du * r[j];
        }
    }
    apply(chunk, chunk->d_product, 3 * n, 3 * n, chunk->recurrent, n,
        (Start){chunk->d_previous, n}, chunk->d_previous, n);
}

// ------------------------------------------------------------------------------ LSTM

static void lstm_forward(const Chunk *chunk, int64_t t)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n;
    float *results = kept_at(chunk, s->results, t, 4 * n);
    Start bias = {s->bias + chunk->network * 4 * n, 0};
    apply(chunk, before(chunk, s->state, s->states, t), n, n, chunk->recurrent, 4 * n, bias, results,
        4 * n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const Input *wx = wx_at(chunk, t, 4 * n) + b * 4 * n;
        const float *old = before(chunk, s->memory, s->memories, t) + b * n;
        float *r = results + b * 4 * n, *state = at(chunk, s->states, t, n) + b * n;
        float *memory = at(chunk, s->memories, t, n) + b * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float i = logistic(load(wx + j) + r[j]);
            float f = logistic(load(wx + n + j) + r[n + j]);
            float u = fast_tanh(load(wx + 2 * n + j) + r[2 * n + j]);
            float o = logistic(load(wx + 3 * n + j) + r[3 * n + j]);
            float m = f * old[j] + i * u;
            r[j] = i;
            r[n + j] = f;
            r[2 * n + j] = u;
            r[3 * n + j] = o;
            memory[j] = m;
            state[j] = o * fast_tanh(m);
        }
    }
}

static void lstm_backward(const Chunk *chunk, int64_t t)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n;
    float *d_results = at(chunk, s->d_results, t, 4 * n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *old = before(chunk, s->memory, s->memories, t) + b * n;
        const float *r = at(chunk, s->results, t, 4 * n) + b * 4 * n;
        const float *memory = at(chunk, s->memories, t, n) + b * n;
        const float *dy = at(chunk, s->d_states, t, n) + b * n;
        const float *d_previous = chunk->d_previous + b * n;
        float *d_memory = chunk->d_memory + b * n, *d = d_results + b * 4 * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float i = r[j], f = r[n + j], u = r[2 * n + j], o = r[3 * n + j];
            float dh = d_previous[j] + dy[j], of_memory = fast_tanh(memory[j]);
            float dm = d_memory[j] + dh * o * (1.0f - of_memory * of_memory);
            d[j] = through_logistic(dm * u, i);
            d[n + j] = through_logistic(dm * old[j], f);
            d[2 * n + j] = dm * i * (1.0f - u * u);
            d[3 * n + j] = through_logistic(dh * of_memory, o);
            d_memory[j] = dm * f;
        }
    }
    apply(chunk, d_results, 4 * n, 4 * n, chunk->recurrent, n, NOTHING, chunk->d_previous, n);
}

// ------------------------------------------------------------------------------ gated and Elman

// Compute the input gate, x' and h', and the product of both; return it.
static void input_gate_forward(const Chunk *chunk, int64_t t, float *results, int64_t width)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n, m = s->gates * n;
    const float *old = before(chunk, s->state, s->states, t);
    float *i = kept_at(chunk, s->i, t, 2 * n), *gated_x = kept_at(chunk, s->gated_x, t, n);
    float *gated_h = at(chunk, s->gated_h, t, n);
    Start gate_bias = {s->gate_bias + chunk->network * 2 * n, 0};
    Start bias = {s->bias + chunk->network * m, 0};
    apply(chunk, old, n, n, chunk->input_gate, 2 * n, gate_bias, i, 2 * n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *x = at(chunk, s->x, t, n) + b * n, *h = old + b * n;
        float *to_x = gated_x + b * n, *to_h = gated_h + b * n;
        const Input *wx = wx_at(chunk, t, 2 * n) + b * 2 * n;
        float *gate = i + b * 2 * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            gate[j] = logistic(load(wx + j) + gate[j]);
            gate[n + j] = logistic(load(wx + n + j) + gate[n + j]);
            to_x[j] = gate[j] * x[j];
            to_h[j] = gate[n + j] * h[j];
        }
    }
    apply(chunk, gated_x, n, n, chunk->input, m, bias, results, width);
    apply(chunk, gated_h, n, n, chunk->recurrent, m, (Start){results, width}, results, width);
}

// Compute what the candidate and the gates read of x and the state.
static void product_forward(const Chunk *chunk, int64_t t, float *results, int64_t width)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n, m = s->gates * n;
    Start bias = {s->bias + chunk->network * m, 0};
    apply(chunk, before(chunk, s->state, s->states, t), n, n, chunk->recurrent, m, bias, results,
        width);
    const Input *wx = wx_at(chunk, t, m);
    for (int64_t b = 0; b < chunk->streams; b++)
        #pragma omp simd
        for (int64_t j = 0; j < m; j++)
            results[b * width + j] += load(wx + b * m + j);
}

// Add what a gate reads of u, if it does, and apply the logistic function.
static void gate_forward(
    const Chunk *chunk, const Number *weight, const float *u, int64_t u_stride, float *gate,
    int64_t stride)
{
    int64_t n = chunk->sequence->n;
    if (weight != NULL)
        apply(chunk, u, u_stride, n, weight, n, (Start){gate, stride}, gate, stride);
    for (int64_t b = 0; b < chunk->streams; b++)
        #pragma omp simd
        for (int64_t j = 0; j < n; j++)
            gate[b * stride + j] = logistic(gate[b * stride + j]);
}

// The results of a step are the candidate, the state gate, the forget gate, and u before the last.
static void gated_forward(const Chunk *chunk, int64_t t)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n, m = s->gates * n, width = m + n;
    const float *old = before(chunk, s->state, s->states, t);
    float *results = kept_at(chunk, s->results, t, width), *states = at(chunk, s->states, t, n);
    if (s->input_gate.values != NULL)
        input_gate_forward(chunk, t, results, width);
    else
        product_forward(chunk, t, results, width);
    float *z = results + n, *f = results + m - n, *mixed = results + m;
    for (int64_t b = 0; b < chunk->streams; b++)
        #pragma omp simd
        for (int64_t j = 0; j < n; j++)
            results[b * width + j] = fast_tanh(results[b * width + j]);
    if (s->has_state_gate)
        gate_forward(chunk, chunk->state_gate, results, width, z, width);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *u = results + b * width, *h = old + b * n;
        const float *gate = z + b * width;
        float *to = mixed + b * width, *state = states + b * n;
        if (s->has_state_gate)
            #pragma omp simd
            for (int64_t j = 0; j < n; j++)
                state[j] = to[j] = h[j] + gate[j] * (u[j] - h[j]);
        else
            #pragma omp simd
            for (int64_t j = 0; j < n; j++)
                state[j] = to[j] = u[j];
    }
    if (!s->has_forget_gate)
        return;
    gate_forward(chunk, chunk->forget_gate, mixed, width, f, width);
    for (int64_t b = 0; b < chunk->streams; b++)
        #pragma omp simd
        for (int64_t j = 0; j < n; j++)
            states[b * n + j] *= f[b * width + j];
}

// Given the gradients d of the candidate and the gates before their functions, compute those of the
// input gate and of x, and add that of the state.
static void input_gate_backward(const Chunk *chunk, int64_t t, const float *d)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n, m = s->gates * n;
    const float *d_gated = at(chunk, s->d_gated_h, t, n);
    float *d_c = chunk->d_product, *d_wx = at(chunk, s->d_wx, t, 2 * n);
    apply(chunk, d, m, m, chunk->input, n, NOTHING, d_c, 2 * n);
    apply(chunk, d, m, m, chunk->recurrent, n, (Start){d_gated, n}, d_c + n, 2 * n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *x = at(chunk, s->x, t, n) + b * n;
        const float *h = before(chunk, s->state, s->states, t) + b * n;
        const float *i = at(chunk, s->i, t, 2 * n) + b * 2 * n;
        const float *dc = d_c + b * 2 * n;
        float *d_gate = d_wx + b * 2 * n, *dx = at(chunk, s->d_x, t, n) + b * n;
        float *d_previous = chunk->d_previous + b * n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            d_gate[j] = through_logistic(dc[j] * x[j], i[j]);
            d_gate[n + j] = through_logistic(dc[n + j] * h[j], i[n + j]);
            dx[j] = dc[j] * i[j];
            d_previous[j] += dc[n + j] * i[n + j];
        }
    }
    apply(chunk, d_wx, 2 * n, 2 * n, chunk->input_gate, n, (Start){chunk->d_previous, n},
        chunk->d_previous, n);
}

static void gated_backward(const Chunk *chunk, int64_t t)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n, m = s->gates * n, width = m + n;
    const float *results = at(chunk, s->results, t, width);
    float *d_results = at(chunk, s->d_results, t, m), *all_du = chunk->du;
    Start du_start = {all_du, n};
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *dy = at(chunk, s->d_states, t, n) + b * n;
        const float *f = results + b * width + m - n, *mixed = f + n;
        const float *d_previous = chunk->d_previous + b * n;
        float *du = all_du + b * n, *df = d_results + b * m + m - n;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++)
            du[j] = d_previous[j] + dy[j];
        if (s->has_forget_gate)
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                df[j] = through_logistic(du[j] * mixed[j], f[j]);
                du[j] *= f[j];
            }
    }
    if (s->forget_gate.values != NULL)
        apply(chunk, d_results + m - n, m, n, chunk->forget_gate, n, du_start, all_du, n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *h = before(chunk, s->state, s->states, t) + b * n;
        const float *u = results + b * width, *z = u + n;
        float *du = all_du + b * n, *dz = d_results + b * m + n;
        float *d_previous = chunk->d_previous + b * n;
        if (s->has_state_gate)
            #pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                dz[j] = through_logistic(du[j] * (u[j] - h[j]), z[j]);
                d_previous[j] = du[j] * (1.0f - z[j]);
                du[j] *= z[j];
            }
        else
            memset(d_previous, 0, n * sizeof(float));
    }
    if (s->state_gate.values != NULL)
        apply(chunk, d_results + n, m, n, chunk->state_gate, n, du_start, all_du, n);
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *u = results + b * width, *du = all_du + b * n;
        float *d = d_results + b * m;
        #pragma omp simd
        for (int64_t j = 0; j < n; j++)
            d[j] = du[j] * (1.0f - u[j] * u[j]);
    }
    if (s->input_gate.values != NULL)
        input_gate_backward(chunk, t, d_results);
    else
        apply(chunk, d_results, m, m, chunk->recurrent, n, (Start){chunk->d_previous, n},
            chunk->d_previous, n);
}

// ------------------------------------------------------------------------------ all chunks

enum { WEIGHTS = 5 };  // of a struct Sequence, one after another

// Return the Numbers that a network's weight takes as a second factor.
static int64_t size_of(const Weight *weight, int is_backward)
{
    if (weight->values == NULL)
        return 0;
    int64_t size = is_backward ? packed_size(weight->columns, weight->rows)
                               : packed_size(weight->rows, weight->columns);
    return round_up(size, 16);
}

// Pack a weight of network k, or the transposed weight for a backward pass.
static void pack_weight(const Weight *weight, int64_t k, int is_backward, Number *scratch, Number *to)
{
    int64_t rows = weight->is_transposed ? weight->columns : weight->rows;
    int64_t columns = weight->rows + weight->columns - rows;
    const float *values = weight->values + k * weight->next;
    Rows matrix = rows_of(&scratch, (float *)values, rows, columns);
    round_rows(rows, columns, matrix);
    if (weight->is_transposed == is_backward)
        pack(numbers(rows), columns, depth_of(rows), matrix.across, to);
    else
        pack_transposed(rows, numbers(columns), depth_of(columns), matrix.along,
            matrix.along_stride, to);
}

// Return the Numbers of memory that pack_weight needs, at most.
static int64_t packing_size(const Sequence *s)
{
    int64_t most = 4 * s->n;  // rows or columns
    return 2 * (most + 64) * row_stride(most);
}

// Return the most streams of a chunk: whole tiles, so that rows are multiplied alike in every chunk.
static int64_t chunk_size(const Sequence *s)
{
    int64_t parts = s->count < s->threads ? s->threads : 1;
    return round_up((s->streams + parts - 1) / parts, 16);
}

static Number *allocate(int64_t size) { return aligned_alloc(64, round_up(size, 16) * sizeof(Number)); }

// Compute a chunk, which has the packed weights, in the memory of its thread.
static void run_chunk(Chunk *chunk, int is_backward, Number *memory)
{
    const Sequence *s = chunk->sequence;
    int64_t n = s->n, size = round_up(chunk->streams * n, 16), bytes = chunk->streams * n * sizeof(float);
    chunk->du = (float *)memory;
    chunk->d_previous = chunk->du + size;
    chunk->d_memory = chunk->d_previous + size;
    chunk->d_product = chunk->d_memory + size;
    chunk->rounded = (Number *)chunk->d_product + 3 * size;
    if (!is_backward) {
        for (int64_t t = 0; t < s->steps; t++)
            (s->cell == GRU ? gru_forward : s->cell == LSTM ? lstm_forward : gated_forward)(chunk, t);
        return;
    }
    memset(chunk->d_previous, 0, bytes);
    if (s->cell == LSTM)
        memcpy(chunk->d_memory, rows_at(chunk, s->d_last_memory, 1, 0, n), bytes);
    for (int64_t t = s->steps - 1; t >= 0; t--)
        (s->cell == GRU ? gru_backward : s->cell == LSTM ? lstm_backward : gated_backward)(chunk, t);
    memcpy(rows_at(chunk, s->d_state, 1, 0, n), chunk->d_previous, bytes);
    if (s->cell == LSTM)
        memcpy(rows_at(chunk, s->d_memory, 1, 0, n), chunk->d_memory, bytes);
}

// Compute all steps of a forward or backward pass. Return 1 if there is not enough memory, else 0.
int rnn_sequence(const Sequence *s, int is_backward)
{
    const Weight *weights = &s->recurrent;
    int64_t places[WEIGHTS + 1] = {0};
    for (int w = 0; w < WEIGHTS; w++)
        places[w + 1] = places[w] + size_of(weights + w, is_backward);
    int64_t most = chunk_size(s), chunks = (s->streams + most - 1) / most;
    int64_t numbers_of_chunk = most * (6 * s->n + row_stride(depth_of(4 * s->n))) + 64;
    Number *packed = allocate(s->count * places[WEIGHTS] + 1);
    int failed = packed == NULL;
    #pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        Number *memory = allocate(numbers_of_chunk), *scratch = allocate(packing_size(s));
        failed |= memory == NULL || scratch == NULL || packed == NULL;
        configure_tiles();
        #pragma omp for
        for (int64_t index = 0; index < s->count * WEIGHTS; index++) {
            int64_t k = index / WEIGHTS, w = index % WEIGHTS;
            if (!failed && weights[w].values != NULL)
                pack_weight(weights + w, k, is_backward, scratch,
                    packed + k * places[WEIGHTS] + places[w]);
        }
        #pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < s->count * chunks; index++) {
            int64_t k = index / chunks, first = index % chunks * most;
            const Number *of_network = packed + k * places[WEIGHTS];
            Chunk chunk = {
                .sequence = s,
                .network = k,
                .first = first,
                .streams = s->streams - first < most ? s->streams - first : most,
                .recurrent = of_network,
                .input_gate = of_network + places[1],
                .input = of_network + places[2],
                .state_gate = s->state_gate.values == NULL ? NULL : of_network + places[3],
                .forget_gate = s->forget_gate.values == NULL ? NULL : of_network + places[4],
            };
            if (!failed)
                run_chunk(&chunk, is_backward, memory);
        }
        release_tiles();
        free(memory);
        free(scratch);
    }
    free(packed);
    return failed;
}
