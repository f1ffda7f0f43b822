// One layer of a gated network: its forward pass, and its backward pass within a time step.
//
// rnn.cells.GatedCell has the equations and the names: x input, h previous state, c = [x ; h], u new
// state, z, f and i gates, o read-out, y output; dx is the gradient of the loss with respect to x, n
// the state size. A layer is computed for a block of a few streams, whose intermediate results stay
// in the caches. round_rows makes a result a factor of products.
//
// The compiler is given two lists of names, which rnn/native/library.py derives from the config: MAPS,
// the linear maps of a layer with every option, and OPTIONS, the other switches of a network.

#include "products.h"

// ------------------------------------------------------------------------------ functions

// eˣ to 1 part in 10⁷: 2ᵏ · eʳ with r in ±ln(2)/2, and a polynomial for eʳ.
INLINE float fast_exp(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float k = __builtin_rintf(x * 1.44269504f);
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {.i = ((int32_t)k + 127) << 23};
    return p * power.f;
}

INLINE float logistic(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// d · g · (1 − g): the gradient before the logistic function of a gate g.
INLINE float through_logistic(float d, float g) { return d * g * (1.0f - g); }

// ------------------------------------------------------------------------------ linear maps

// Places of a map's weight (inputs, outputs) and bias (outputs) in the flat values and gradients,
// and of its packed weight, and the transposed one, in those of the network. The inputs are parts of
// n rows each. weight is -1 where the network has no such map.
typedef struct {
    int64_t weight, bias, inputs, outputs, packed, transposed;
} Map;

typedef struct {
    Map MAPS;
} Layer;

enum { MAP_COUNT = sizeof(Layer) / sizeof(Map) };

typedef struct {
    Map embedding, head;
    int64_t OPTIONS;
    int64_t begin, end;   // range of its weights in the flat values
    int64_t packed_size;  // Numbers of all its packed weights
    const Layer *layers;  // (layers)
} Network;

INLINE int has(const Map *map) { return map->weight >= 0; }

// What a block of streams of one network is computed with.
typedef struct {
    int64_t n, streams;
    const float *weights;
    const Number *packed;  // weights of the network
    float *grads;          // NULL without a backward pass
} Block;

static void clear(int64_t rows, int64_t columns, Rows y)
{
    for (int64_t b = 0; b < rows; b++)
        memset(ROW(y, b), 0, columns * sizeof(float));
}

// The different rows of a matrix (streams, n) in which some repeat, as those of the embedding do
// where streams read the same token.
typedef struct Repeated {
    int64_t count;         // of different rows
    const int32_t *index;  // the row of each stream (streams)
    Rows rows, grads;      // (count, n): the different rows, and their gradients
    Rows products;         // memory (count, 2n)
} Repeated;

// y ← x · W + b with the first part of the weight, else y += x · W.
static void map_part(const Block *block, const Map *map, int part, Rows x, Rows y)
{
    int64_t depth = numbers(block->n), outputs = map->outputs;
    const float *bias = part ? NULL : block->weights + map->bias;
    Panels panels = {block->packed + map->packed + part * packed_size(depth, outputs),
        depth * TILE_COLUMNS, TILE_COLUMNS};
    const Repeated *among = x.among;
    if (among == NULL) {
        multiply(block->streams, outputs, depth, factor(x), panels, bias, y.values, y.stride);
        return;
    }
    Rows products = among->products;
    if (part)
        clear(among->count, outputs, products);
    multiply(among->count, outputs, depth, factor(among->rows), panels, bias, products.values,
        products.stride);
    for (int64_t b = 0; b < block->streams; b++) {
        const float *product = ROW(products, among->index[b]);
        float *row = ROW(y, b);
        if (part)
            for (int64_t j = 0; j < outputs; j++)
                row[j] += product[j];
        else
            memcpy(row, product, outputs * sizeof(float));
    }
}

// With one part of the weight: dW += xᵀ · dy and, unless dx is NO_ROWS, dx += dy · Wᵀ.
static void part_grads(const Block *block, const Map *map, int part, Rows x, Rows dy, Rows dx)
{
    int64_t n = block->n, outputs = map->outputs, depth = numbers(outputs);
    int64_t streams = block->streams;
    const Repeated *among = x.among;
    if (among != NULL) {
        // Gradients of the same row have the same factor: they are added first.
        clear(among->count, outputs, among->products);
        for (int64_t b = 0; b < streams; b++) {
            float *sum = ROW(among->products, among->index[b]), *row = ROW(dy, b);
            for (int64_t j = 0; j < outputs; j++)
                sum[j] += row[j];
        }
        streams = among->count;
        round_rows(streams, outputs, among->products);
        x = among->rows;
        dy = among->products;
        dx = dx.values == NULL ? NO_ROWS : among->grads;
    }
    Panels columns = {dy.across, TILE_COLUMNS, dy.stride};
    multiply(n, outputs, numbers(streams), transposed_factor(x), columns, NULL,
        block->grads + map->weight + part * n * outputs, outputs);
    if (dx.values == NULL)
        return;
    Panels panels = {block->packed + map->transposed + part * packed_size(depth, n),
        depth * TILE_COLUMNS, TILE_COLUMNS};
    multiply(streams, n, depth, factor(dy), panels, NULL, dx.values, dx.stride);
}

// Add the sum of the rows of dy (rows, columns) to a gradient.
static void add_sum(int64_t rows, int64_t columns, Rows dy, float *grad)
{
    enum { SUMS = 64 };
    for (int64_t j = 0; j < columns; j += SUMS) {
        int64_t count = columns - j < SUMS ? columns - j : SUMS;
        float sums[SUMS] = {0};
        for (int64_t b = 0; b < rows; b++)
            for (int64_t i = 0; i < count; i++)
                sums[i] += ROW(dy, b)[j + i];
        for (int64_t i = 0; i < count; i++)
            grad[j + i] += sums[i];
    }
}

static void bias_grad(const Block *block, const Map *map, Rows dy)
{
    add_sum(block->streams, map->outputs, dy, block->grads + map->bias);
}

// ------------------------------------------------------------------------------ forward pass

// Intermediate results of a layer for a block of streams, which the backward pass needs.
typedef struct {
    Rows x, h;                        // input and previous state (streams, n)
    Rows i, c;                        // input gate and c' (streams, 2n)
    Rows gated_x, gated_h;            // x' and h' (streams, n)
    Rows candidate, z, mixed, f, u;   // (streams, n); mixed is u before the forget gate
    Rows o, gate, y;                  // (streams, n); gate is what o is multiplied by
} Activations;

static void apply_logistic(const Block *block, Rows x, int64_t columns)
{
    for (int64_t b = 0; b < block->streams; b++) {
        float *row = ROW(x, b);
        for (int64_t j = 0; j < columns; j++)
            row[j] = logistic(row[j]);
    }
}

// to ← p ⊙ q
static void multiply_elements(const Block *block, Rows to, Rows p, Rows q)
{
    for (int64_t b = 0; b < block->streams; b++) {
        float *to_row = ROW(to, b), *p_row = ROW(p, b), *q_row = ROW(q, b);
        for (int64_t j = 0; j < block->n; j++)
            to_row[j] = p_row[j] * q_row[j];
    }
}

// Compute the state gate or the forget gate, given u as it stands.
static void gate_forward(
    const Block *block, const Network *network, const Map *map, const Activations *a, Rows u,
    Rows gate)
{
    map_part(block, map, 0, a->gated_x, gate);
    map_part(block, map, 1, a->gated_h, gate);
    if (network->gates_read_candidate) {
        round_rows(block->streams, block->n, u);
        map_part(block, map, 2, u, gate);
    }
    apply_logistic(block, gate, block->n);
}

// List what the read-out reads, in the order of the weight's parts; return their number.
static int list_sources(const Network *network, const Activations *a, Rows sources[3])
{
    int count = 0;
    if (network->reads_new_state)
        sources[count++] = a->u;
    if (network->reads_previous_state)
        sources[count++] = a->gated_h;
    if (network->residual)
        sources[count++] = a->x;
    return count;
}

static void input_gate_forward(const Block *block, const Layer *layer, Activations *a)
{
    int64_t n = block->n;
    a->gated_x = a->x;
    a->gated_h = a->h;
    if (!has(&layer->input_gate))
        return;
    map_part(block, &layer->input_gate, 0, a->x, a->i);
    map_part(block, &layer->input_gate, 1, a->h, a->i);
    apply_logistic(block, a->i, 2 * n);
    a->gated_x = a->c;
    a->gated_h = columns_from(a->c, n);
    multiply_elements(block, a->gated_x, a->i, a->x);
    multiply_elements(block, a->gated_h, columns_from(a->i, n), a->h);
    round_rows(block->streams, n, a->gated_x);
    round_rows(block->streams, n, a->gated_h);
}

static void state_forward(
    const Block *block, const Network *network, const Layer *layer, Activations *a)
{
    int64_t n = block->n;
    // The last of these results is the new state.
    if (!has(&layer->forget_gate))
        a->mixed = a->u;
    if (!has(&layer->state_gate))
        a->candidate = a->mixed;
    map_part(block, &layer->candidate, 0, a->gated_x, a->candidate);
    map_part(block, &layer->candidate, 1, a->gated_h, a->candidate);
    for (int64_t b = 0; b < block->streams; b++) {
        float *u = ROW(a->candidate, b);
        for (int64_t j = 0; j < n; j++)
            u[j] = 2.0f * logistic(2.0f * u[j]) - 1.0f;  // tanh
    }
    if (has(&layer->state_gate)) {
        gate_forward(block, network, &layer->state_gate, a, a->candidate, a->z);
        for (int64_t b = 0; b < block->streams; b++) {
            float *mixed = ROW(a->mixed, b), *u = ROW(a->candidate, b);
            float *z = ROW(a->z, b), *h = ROW(a->h, b);
            for (int64_t j = 0; j < n; j++)
                mixed[j] = h[j] + z[j] * (u[j] - h[j]);
        }
    }
    if (has(&layer->forget_gate)) {
        gate_forward(block, network, &layer->forget_gate, a, a->mixed, a->f);
        multiply_elements(block, a->u, a->f, a->mixed);
    }
    if (network->reads_new_state)
        round_rows(block->streams, n, a->u);
}

static void output_forward(
    const Block *block, const Network *network, const Layer *layer, Activations *a)
{
    int64_t n = block->n;
    Rows sources[3];
    int count = list_sources(network, a, sources);
    for (int s = 0; s < count; s++)
        map_part(block, &layer->read_out, s, sources[s], a->o);
    if (has(&layer->output_gate)) {
        round_rows(block->streams, n, a->o);
        map_part(block, &layer->output_gate, 0, a->o, a->gate);
        for (int s = 0; s < count; s++)
            map_part(block, &layer->output_gate, s + 1, sources[s], a->gate);
    } else {
        for (int64_t b = 0; b < block->streams; b++)
            memcpy(ROW(a->gate, b), ROW(a->o, b), n * sizeof(float));
    }
    apply_logistic(block, a->gate, n);
    multiply_elements(block, a->y, a->gate, a->o);
    round_rows(block->streams, n, a->y);
}

// Compute u and y, given x, which is rounded, and h.
static void layer_forward(
    const Block *block, const Network *network, const Layer *layer, Activations *a)
{
    round_rows(block->streams, block->n, a->h);
    input_gate_forward(block, layer, a);
    state_forward(block, network, layer, a);
    output_forward(block, network, layer, a);
}

// ------------------------------------------------------------------------------ backward pass

// Gradients of a block of streams.
typedef struct {
    Rows y;               // of the layer's output (streams, n); overwritten
    Rows x;               // of its input (streams, n): the result
    Rows u, previous, o;  // (streams, n): of the new state, of h', of the read-out
    Rows c;               // of c' (streams, 2n)
    Rows gate;            // of a gate before its logistic function (streams, 2n)
} Gradients;

// Add the gradients of the read-out and the output gate, and those of what they read.
static void output_backward(
    const Block *block, const Network *network, const Layer *layer, const Activations *a,
    const Gradients *d)
{
    int64_t n = block->n;
    int is_learned = has(&layer->output_gate);
    for (int64_t b = 0; b < block->streams; b++) {
        float *dy = ROW(d->y, b), *o = ROW(a->o, b), *g = ROW(a->gate, b);
        float *d_o = ROW(d->o, b), *d_gate = ROW(d->gate, b);
        for (int64_t j = 0; j < n; j++) {
            d_gate[j] = through_logistic(dy[j] * o[j], g[j]);
            d_o[j] = dy[j] * g[j];
        }
        if (!is_learned)
            for (int64_t j = 0; j < n; j++)
                d_o[j] += d_gate[j];
    }
    Rows sources[3], d_sources[3];
    int count = list_sources(network, a, sources), last = 0;
    if (network->reads_new_state)
        d_sources[last++] = d->u;
    if (network->reads_previous_state)
        d_sources[last++] = network->has_previous_state_grad ? d->previous : NO_ROWS;
    if (network->residual)
        d_sources[last++] = d->x;
    if (is_learned) {
        round_rows(block->streams, n, d->gate);
        bias_grad(block, &layer->output_gate, d->gate);
        part_grads(block, &layer->output_gate, 0, a->o, d->gate, d->o);
        for (int s = 0; s < count; s++)
            part_grads(block, &layer->output_gate, s + 1, sources[s], d->gate, d_sources[s]);
    }
    round_rows(block->streams, n, d->o);
    bias_grad(block, &layer->read_out, d->o);
    for (int s = 0; s < count; s++)
        part_grads(block, &layer->read_out, s, sources[s], d->o, d_sources[s]);
}

// Add the gradients of the candidate or of a gate that reads [c' ; u], given d->gate. u and du are
// NO_ROWS if it does not read u.
static void state_map_grads(
    const Block *block, const Layer *layer, const Map *map, const Activations *a,
    const Gradients *d, Rows u, Rows du)
{
    int64_t n = block->n;
    Rows d_previous = has(&layer->input_gate) ? columns_from(d->c, n) : NO_ROWS;
    round_rows(block->streams, n, d->gate);
    bias_grad(block, map, d->gate);
    part_grads(block, map, 0, a->gated_x, d->gate, d->c);
    part_grads(block, map, 1, a->gated_h, d->gate, d_previous);
    if (du.values != NULL)
        part_grads(block, map, 2, u, d->gate, du);
}

// Add the gradients of the candidate and its gates, given that of the new state.
static void state_backward(
    const Block *block, const Network *network, const Layer *layer, const Activations *a,
    const Gradients *d)
{
    int64_t n = block->n;
    Rows du = network->gates_read_candidate ? d->u : NO_ROWS;
    if (has(&layer->forget_gate)) {
        for (int64_t b = 0; b < block->streams; b++) {
            float *du_row = ROW(d->u, b), *u = ROW(a->mixed, b), *f = ROW(a->f, b);
            float *d_gate = ROW(d->gate, b);
            for (int64_t j = 0; j < n; j++) {
                d_gate[j] = through_logistic(du_row[j] * u[j], f[j]);
                du_row[j] *= f[j];
            }
        }
        state_map_grads(block, layer, &layer->forget_gate, a, d, a->mixed, du);
    }
    if (has(&layer->state_gate)) {
        for (int64_t b = 0; b < block->streams; b++) {
            float *du_row = ROW(d->u, b), *u = ROW(a->candidate, b), *h = ROW(a->h, b);
            float *z = ROW(a->z, b), *d_gate = ROW(d->gate, b);
            for (int64_t j = 0; j < n; j++) {
                d_gate[j] = through_logistic(du_row[j] * (u[j] - h[j]), z[j]);
                du_row[j] *= z[j];
            }
        }
        state_map_grads(block, layer, &layer->state_gate, a, d, a->candidate, du);
    }
    for (int64_t b = 0; b < block->streams; b++) {
        float *du_row = ROW(d->u, b), *u = ROW(a->candidate, b), *d_gate = ROW(d->gate, b);
        for (int64_t j = 0; j < n; j++)
            d_gate[j] = du_row[j] * (1.0f - u[j] * u[j]);
    }
    state_map_grads(block, layer, &layer->candidate, a, d, NO_ROWS, NO_ROWS);
}

// Add the gradients of the input gate and of x, given those of x' and h'.
static void input_gate_backward(
    const Block *block, const Layer *layer, const Activations *a, const Gradients *d)
{
    int64_t n = block->n;
    for (int64_t b = 0; b < block->streams; b++) {
        float *dx = ROW(d->x, b), *dc = ROW(d->c, b), *i = ROW(a->i, b), *x = ROW(a->x, b);
        float *h = ROW(a->h, b), *d_previous = ROW(d->previous, b), *d_gate = ROW(d->gate, b);
        for (int64_t j = 0; j < n; j++) {
            dx[j] += dc[j] * i[j];
            d_gate[j] = through_logistic(dc[j] * x[j], i[j]);
        }
        for (int64_t j = 0; j < n; j++)
            d_gate[n + j] = through_logistic((dc[n + j] + d_previous[j]) * h[j], i[n + j]);
    }
    round_rows(block->streams, 2 * n, d->gate);
    bias_grad(block, &layer->input_gate, d->gate);
    part_grads(block, &layer->input_gate, 0, a->x, d->gate, d->x);
    part_grads(block, &layer->input_gate, 1, a->h, d->gate, NO_ROWS);
}

static void layer_backward(
    const Block *block, const Network *network, const Layer *layer, const Activations *a,
    const Gradients *d)
{
    int64_t n = block->n;
    clear(block->streams, n, d->x);
    clear(block->streams, n, d->u);
    clear(block->streams, n, d->previous);
    output_backward(block, network, layer, a, d);
    if (!network->reads_new_state && !network->has_previous_state_grad)
        return;
    clear(block->streams, 2 * n, d->c);
    if (network->reads_new_state)
        state_backward(block, network, layer, a, d);
    if (has(&layer->input_gate)) {
        input_gate_backward(block, layer, a, d);
        return;
    }
    for (int64_t b = 0; b < block->streams; b++) {
        float *dx = ROW(d->x, b), *dc = ROW(d->c, b);
        for (int64_t j = 0; j < n; j++)
            dx[j] += dc[j];
    }
}
