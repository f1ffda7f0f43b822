// One layer of a gated network: its forward pass, and its backward pass within a time step.
//
// rnn.cells.GatedCell has the equations and the names: x input, h previous state, c = [x ; h], u new
// state, z, f and i gates, o read-out, y output; dx is the gradient of the loss with respect to x, n
// the state size. round_rows makes a result a factor of products.
//
// A layer is computed for a block of streams, whose intermediate results mostly stay in the second
// cache, in stages, each with the products of one map. Threads that share a block each take a chunk of
// its streams, and of the rows of a weight's gradient, so that no sum depends on their number.
//
// The compiler is given two lists of names, which rnn/native/library.py derives from the config: MAPS,
// the linear maps of a layer with every option, and OPTIONS, the other switches of a network.

#include "products.h"

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

// What streams of one network are computed with: a block, or a chunk of it.
typedef struct {
    int64_t n, streams;
    int64_t thread, threads;  // this one of those that share the block
    const float *weights;
    const Number *packed;  // weights of the network
    float *grads;          // NULL without a backward pass
    int is_first;          // whether it is the first block, whose gradients are added to nothing
} Block;

// Wait for the threads that share the block.
INLINE void sync(const Block *block)
{
    if (block->threads > 1) {
        #pragma omp barrier
    }
}

// Return this thread's chunk of the streams, which begins at *first: whole tiles, so that rows are
// multiplied alike in every chunk.
INLINE Block chunk_of(const Block *block, int64_t *first)
{
    Block chunk = *block;
    int64_t size = round_up((block->streams + block->threads - 1) / block->threads, 16);
    int64_t before = size * block->thread;
    *first = before < block->streams ? before : block->streams;
    chunk.streams = block->streams - *first < size ? block->streams - *first : size;
    return chunk;
}

static void clear(int64_t rows, int64_t columns, Rows y)
{
    for (int64_t b = 0; b < rows; b++)
        memset(ROW(y, b), 0, columns * sizeof(float));
}

// The different rows of a matrix (streams, n) in which some repeat, as those of the embedding do
// where streams read the same token.
typedef struct Repeated {
    int64_t count;     // of different rows, with rows of zeros at their end
    Rows rows, grads;  // (count, n): the different rows, and their gradients
    Rows products;     // memory (count, 2n)
} Repeated;

INLINE Panels weight_panels(const Block *block, const Map *map, int part)
{
    int64_t depth = depth_of(block->n);
    return (Panels){block->packed + map->packed + part * packed_size(block->n, map->outputs),
        depth * TILE_COLUMNS, TILE_COLUMNS};
}

INLINE Panels transposed_panels(const Block *block, const Map *map, int part)
{
    int64_t depth = depth_of(map->outputs);
    return (Panels){block->packed + map->transposed + part * packed_size(map->outputs, block->n),
        depth * TILE_COLUMNS, TILE_COLUMNS};
}

// Multiply the different rows among those of x by one part of the weight, for map_part.
static void share_products(const Block *block, const Map *map, int part, Rows x)
{
    const Repeated *among = x.among;
    if (among == NULL)
        return;
    sync(block);
    Block rows = *block;
    rows.streams = among->count;
    int64_t first;
    rows = chunk_of(&rows, &first);
    Rows products = rows_from(among->products, first);
    multiply(rows.streams, map->outputs, depth_of(block->n), factor(rows_from(among->rows, first)),
        weight_panels(block, map, part), NOTHING, products.values, products.stride);
    sync(block);
}

// y ← x · W + b of a chunk with the first part of the weight, else y += x · W.
static void map_part(const Block *chunk, const Map *map, int part, Rows x, Rows y)
{
    int64_t outputs = map->outputs;
    const float *bias = chunk->weights + map->bias;
    if (x.among == NULL) {
        Start start = part ? (Start){y.values, y.stride} : (Start){bias, 0};
        multiply(chunk->streams, outputs, depth_of(chunk->n), factor(x),
            weight_panels(chunk, map, part), start, y.values, y.stride);
        return;
    }
    for (int64_t b = 0; b < chunk->streams; b++) {
        const float *product = ROW(x.among->products, x.index[b]);
        float *row = ROW(y, b);
        const float *start = part ? row : bias;
        for (int64_t j = 0; j < outputs; j++)
            row[j] = start[j] + product[j];
    }
}

// dx += dy · Wᵀ of a chunk with one part of the weight. x is the factor of the part: where rows of it
// repeat, weight_grads adds up their gradients. Nothing if dx is NO_ROWS.
static void input_grads(const Block *chunk, const Map *map, int part, Rows x, Rows dy, Rows dx)
{
    if (dx.values == NULL || x.among != NULL)
        return;
    multiply(chunk->streams, chunk->n, depth_of(map->outputs), factor(dy),
        transposed_panels(chunk, map, part), (Start){dx.values, dx.stride}, dx.values, dx.stride);
}

// dW += xᵀ · dy with one part of the weight, given all streams of the block, and the gradients of the
// rows of x that repeat.
static void weight_grads(const Block *block, const Map *map, int part, Rows x, Rows dy)
{
    int64_t n = block->n, outputs = map->outputs, streams = block->streams;
    const Repeated *among = x.among;
    if (among != NULL) {
        // Gradients of the same row have the same factor: they are added first.
        if (block->thread == 0) {
            clear(among->count, outputs, among->products);
            for (int64_t b = 0; b < streams; b++) {
                float *sum = ROW(among->products, x.index[b]), *row = ROW(dy, b);
                for (int64_t j = 0; j < outputs; j++)
                    sum[j] += row[j];
            }
            round_rows(among->count, outputs, among->products);
        }
        sync(block);
        Block rows = *block;
        rows.streams = among->count;
        int64_t first;
        rows = chunk_of(&rows, &first);
        input_grads(&rows, map, part, rows_from(among->rows, first),
            rows_from(among->products, first), rows_from(among->grads, first));
        x = among->rows;
        dy = among->products;
        streams = among->count;
    }
    Panels columns = {dy.across, TILE_COLUMNS, dy.stride};
    float *grads = block->grads + map->weight + part * n * outputs;
    int64_t size = block->threads > 1 ? 32 : n;
    for (int64_t i = size * block->thread; i < n; i += size * block->threads) {
        int64_t rows = n - i < size ? n - i : size;
        float *to = grads + i * outputs;
        multiply(rows, outputs, depth_of(streams), rows_of_factor(transposed_factor(x), i), columns,
            block->is_first ? NOTHING : (Start){to, outputs}, to, outputs);
    }
}

// Add the sum of the rows of dy (rows, columns) to a gradient, or write it there.
static void add_sum(int64_t rows, int64_t columns, Rows dy, int is_first, float *grad)
{
    enum { SUMS = 64 };
    for (int64_t j = 0; j < columns; j += SUMS) {
        int64_t count = columns - j < SUMS ? columns - j : SUMS;
        float sums[SUMS] = {0};
        for (int64_t b = 0; b < rows; b++)
            for (int64_t i = 0; i < count; i++)
                sums[i] += ROW(dy, b)[j + i];
        for (int64_t i = 0; i < count; i++)
            grad[j + i] = (is_first ? 0.0f : grad[j + i]) + sums[i];
    }
}

static void bias_grads(const Block *block, const Map *map, Rows dy)
{
    if (block->thread == block->threads - 1)
        add_sum(block->streams, map->outputs, dy, block->is_first, block->grads + map->bias);
}

// ------------------------------------------------------------------------------ forward pass

// Intermediate results of a layer for a block of streams, which the backward pass needs. Without a
// gate, some are others of them.
typedef struct {
    Rows x, h;                        // input and previous state (streams, n)
    Rows i, c;                        // input gate and c' (streams, 2n)
    Rows gated_x, gated_h;            // x' and h' (streams, n)
    Rows candidate, z, mixed, f, u;   // (streams, n); mixed is u before the forget gate
    Rows o, gate, y;                  // (streams, n); gate is what o is multiplied by
} Activations;

// Gradients of a block of streams.
typedef struct {
    Rows y;               // of the layer's output (streams, n)
    Rows x;               // of its input (streams, n): the result
    Rows u, previous, o;  // (streams, n): of the new state, of h', of the read-out
    Rows c;               // of c' (streams, 2n)
    Rows gate;            // of a gate before its logistic function (streams, 2n)
} Gradients;

// What a thread computes of a layer: its chunk of the streams, and its part of the weights' gradients,
// which are sums over the block.
typedef struct {
    const Network *network;
    const Layer *layer;
    Block block, chunk;
    Activations whole, a;  // of the block, and of the chunk
    Gradients whole_d, d;
} Pass;

static void move_rows(Rows *rows, int64_t count, int64_t first)
{
    for (int64_t r = 0; r < count; r++)
        rows[r] = rows_from(rows[r], first);
}

// Set what belongs to the chunk.
static void divide(Pass *pass)
{
    int64_t first;
    pass->chunk = chunk_of(&pass->block, &first);
    pass->a = pass->whole;
    pass->d = pass->whole_d;
    move_rows((Rows *)&pass->a, sizeof(Activations) / sizeof(Rows), first);
    move_rows((Rows *)&pass->d, sizeof(Gradients) / sizeof(Rows), first);
}

static void apply_logistic(const Block *chunk, Rows x, int64_t columns)
{
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *row = ROW(x, b);
        for (int64_t j = 0; j < columns; j++)
            row[j] = logistic(row[j]);
    }
}

// to ← p ⊙ q
static void multiply_elements(const Block *chunk, Rows to, Rows p, Rows q)
{
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *to_row = ROW(to, b), *p_row = ROW(p, b), *q_row = ROW(q, b);
        for (int64_t j = 0; j < chunk->n; j++)
            to_row[j] = p_row[j] * q_row[j];
    }
}

// Round the previous state, and compute the input gate and c'.
static void input_gate_forward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    const Map *map = &pass->layer->input_gate;
    int64_t n = chunk->n;
    round_rows(chunk->streams, n, a->h);
    if (!has(map))
        return;
    share_products(&pass->block, map, 0, a->x);
    map_part(chunk, map, 0, a->x, a->i);
    map_part(chunk, map, 1, a->h, a->i);
    apply_logistic(chunk, a->i, 2 * n);
    multiply_elements(chunk, a->gated_x, a->i, a->x);
    multiply_elements(chunk, a->gated_h, columns_from(a->i, n), a->h);
    round_rows(chunk->streams, n, a->gated_x);
    round_rows(chunk->streams, n, a->gated_h);
}

static void candidate_forward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    const Map *map = &pass->layer->candidate;
    share_products(&pass->block, map, 0, a->gated_x);
    map_part(chunk, map, 0, a->gated_x, a->candidate);
    map_part(chunk, map, 1, a->gated_h, a->candidate);
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *u = ROW(a->candidate, b);
        for (int64_t j = 0; j < chunk->n; j++)
            u[j] = fast_tanh(u[j]);
    }
}

// Compute the state gate or the forget gate, given u as it stands.
static void gate_forward(const Pass *pass, const Map *map, Rows u, Rows gate)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    share_products(&pass->block, map, 0, a->gated_x);
    map_part(chunk, map, 0, a->gated_x, gate);
    map_part(chunk, map, 1, a->gated_h, gate);
    if (pass->network->gates_read_candidate) {
        round_rows(chunk->streams, chunk->n, u);
        map_part(chunk, map, 2, u, gate);
    }
    apply_logistic(chunk, gate, chunk->n);
}

static void state_forward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    candidate_forward(pass);
    if (has(&pass->layer->state_gate)) {
        gate_forward(pass, &pass->layer->state_gate, a->candidate, a->z);
        for (int64_t b = 0; b < chunk->streams; b++) {
            float *mixed = ROW(a->mixed, b), *u = ROW(a->candidate, b);
            float *z = ROW(a->z, b), *h = ROW(a->h, b);
            for (int64_t j = 0; j < chunk->n; j++)
                mixed[j] = h[j] + z[j] * (u[j] - h[j]);
        }
    }
    if (has(&pass->layer->forget_gate)) {
        gate_forward(pass, &pass->layer->forget_gate, a->mixed, a->f);
        multiply_elements(chunk, a->u, a->f, a->mixed);
    }
    if (pass->network->reads_new_state)
        round_rows(chunk->streams, chunk->n, a->u);
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

// y ← what the read-out reads times parts of a weight from `first` on, plus y or the bias.
static void map_sources(const Pass *pass, const Map *map, int first, Rows y)
{
    Rows sources[3];
    int count = list_sources(pass->network, &pass->a, sources);
    for (int s = 0; s < count; s++) {
        share_products(&pass->block, map, first + s, sources[s]);
        map_part(&pass->chunk, map, first + s, sources[s], y);
    }
}

static void output_forward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    int is_learned = has(&pass->layer->output_gate);
    map_sources(pass, &pass->layer->read_out, 0, a->o);
    if (is_learned) {
        round_rows(chunk->streams, chunk->n, a->o);
        map_part(chunk, &pass->layer->output_gate, 0, a->o, a->gate);
        map_sources(pass, &pass->layer->output_gate, 1, a->gate);
    }
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *o = ROW(a->o, b), *gate = ROW(a->gate, b), *y = ROW(a->y, b);
        const float *before = is_learned ? gate : o;
        for (int64_t j = 0; j < chunk->n; j++) {
            gate[j] = logistic(before[j]);
            y[j] = gate[j] * o[j];
        }
    }
    round_rows(chunk->streams, chunk->n, a->y);
}

// Compute u and y, given x, which is rounded, and h.
static void layer_forward(const Pass *pass)
{
    input_gate_forward(pass);
    state_forward(pass);
    output_forward(pass);
}

// ------------------------------------------------------------------------------ backward pass

// Add the gradients of what the read-out reads and of parts of a weight from `first` on, given those
// of its outputs.
static void source_grads(const Pass *pass, const Map *map, int first, Rows whole_dy, Rows dy)
{
    const Network *network = pass->network;
    const Gradients *d = &pass->d;
    Rows sources[3], d_sources[3], whole[3];
    int count = list_sources(network, &pass->a, sources), last = 0;
    list_sources(network, &pass->whole, whole);
    if (network->reads_new_state)
        d_sources[last++] = d->u;
    if (network->reads_previous_state)
        d_sources[last++] = network->has_previous_state_grad ? d->previous : NO_ROWS;
    if (network->residual)
        d_sources[last++] = d->x;
    for (int s = 0; s < count; s++)
        input_grads(&pass->chunk, map, first + s, sources[s], dy, d_sources[s]);
    sync(&pass->block);
    bias_grads(&pass->block, map, whole_dy);
    for (int s = 0; s < count; s++)
        weight_grads(&pass->block, map, first + s, whole[s], whole_dy);
}

// Compute the gradients of the output gate and the read-out, and of what they read.
static void output_backward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    const Gradients *d = &pass->d;
    const Map *output_gate = &pass->layer->output_gate;
    int64_t n = chunk->n;
    int is_learned = has(output_gate);
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *dy = ROW(d->y, b), *o = ROW(a->o, b), *g = ROW(a->gate, b);
        float *d_o = ROW(d->o, b), *d_gate = ROW(d->gate, b);
        for (int64_t j = 0; j < n; j++) {
            d_gate[j] = through_logistic(dy[j] * o[j], g[j]);
            d_o[j] = dy[j] * g[j] + (is_learned ? 0.0f : d_gate[j]);
        }
    }
    if (is_learned) {
        round_rows(chunk->streams, n, d->gate);
        input_grads(chunk, output_gate, 0, a->o, d->gate, d->o);
        source_grads(pass, output_gate, 1, pass->whole_d.gate, d->gate);
        weight_grads(&pass->block, output_gate, 0, pass->whole.o, pass->whole_d.gate);
    }
    round_rows(chunk->streams, n, d->o);
    source_grads(pass, &pass->layer->read_out, 0, pass->whole_d.o, d->o);
}

// Add the gradients of the candidate or of a gate that reads [c' ; u], given those of its outputs. u
// and du are NO_ROWS if it does not read u.
static void state_map_grads(const Pass *pass, const Map *map, Rows whole_u, Rows du)
{
    const Activations *a = &pass->a, *whole = &pass->whole;
    const Gradients *d = &pass->d;
    int64_t n = pass->chunk.n;
    Rows d_previous = has(&pass->layer->input_gate) ? columns_from(d->c, n) : NO_ROWS;
    Rows whole_gate = pass->whole_d.gate;
    round_rows(pass->chunk.streams, n, d->gate);
    input_grads(&pass->chunk, map, 0, a->gated_x, d->gate, d->c);
    input_grads(&pass->chunk, map, 1, a->gated_h, d->gate, d_previous);
    input_grads(&pass->chunk, map, 2, NO_ROWS, d->gate, du);
    sync(&pass->block);
    bias_grads(&pass->block, map, whole_gate);
    weight_grads(&pass->block, map, 0, whole->gated_x, whole_gate);
    weight_grads(&pass->block, map, 1, whole->gated_h, whole_gate);
    if (du.values != NULL)
        weight_grads(&pass->block, map, 2, whole_u, whole_gate);
}

// Add the gradients of the candidate and its gates, given that of the new state.
static void state_backward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    const Gradients *d = &pass->d;
    const Layer *layer = pass->layer;
    int64_t n = chunk->n;
    Rows du = pass->network->gates_read_candidate ? d->u : NO_ROWS;
    if (has(&layer->forget_gate)) {
        sync(&pass->block);  // the gradients of the map before have been read
        for (int64_t b = 0; b < chunk->streams; b++) {
            float *du_row = ROW(d->u, b), *u = ROW(a->mixed, b), *f = ROW(a->f, b);
            float *d_gate = ROW(d->gate, b);
            for (int64_t j = 0; j < n; j++) {
                d_gate[j] = through_logistic(du_row[j] * u[j], f[j]);
                du_row[j] *= f[j];
            }
        }
        state_map_grads(pass, &layer->forget_gate, pass->whole.mixed, du);
    }
    if (has(&layer->state_gate)) {
        sync(&pass->block);
        for (int64_t b = 0; b < chunk->streams; b++) {
            float *du_row = ROW(d->u, b), *u = ROW(a->candidate, b), *h = ROW(a->h, b);
            float *z = ROW(a->z, b), *d_gate = ROW(d->gate, b);
            for (int64_t j = 0; j < n; j++) {
                d_gate[j] = through_logistic(du_row[j] * (u[j] - h[j]), z[j]);
                du_row[j] *= z[j];
            }
        }
        state_map_grads(pass, &layer->state_gate, pass->whole.candidate, du);
    }
    sync(&pass->block);
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *du_row = ROW(d->u, b), *u = ROW(a->candidate, b), *d_gate = ROW(d->gate, b);
        for (int64_t j = 0; j < n; j++)
            d_gate[j] = du_row[j] * (1.0f - u[j] * u[j]);
    }
    state_map_grads(pass, &layer->candidate, NO_ROWS, NO_ROWS);
}

// Add the gradients of the input gate and of x, given those of x' and h'.
static void input_gate_backward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Activations *a = &pass->a;
    const Gradients *d = &pass->d;
    const Map *map = &pass->layer->input_gate;
    int64_t n = chunk->n;
    sync(&pass->block);
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *dx = ROW(d->x, b), *dc = ROW(d->c, b), *i = ROW(a->i, b), *x = ROW(a->x, b);
        float *h = ROW(a->h, b), *d_previous = ROW(d->previous, b), *d_gate = ROW(d->gate, b);
        for (int64_t j = 0; j < n; j++) {
            dx[j] += dc[j] * i[j];
            d_gate[j] = through_logistic(dc[j] * x[j], i[j]);
        }
        for (int64_t j = 0; j < n; j++)
            d_gate[n + j] = through_logistic((dc[n + j] + d_previous[j]) * h[j], i[n + j]);
    }
    round_rows(chunk->streams, 2 * n, d->gate);
    input_grads(chunk, map, 0, a->x, d->gate, d->x);
    sync(&pass->block);
    bias_grads(&pass->block, map, pass->whole_d.gate);
    weight_grads(&pass->block, map, 0, pass->whole.x, pass->whole_d.gate);
    weight_grads(&pass->block, map, 1, pass->whole.h, pass->whole_d.gate);
}

static void layer_backward(const Pass *pass)
{
    const Block *chunk = &pass->chunk;
    const Gradients *d = &pass->d;
    const Network *network = pass->network;
    int64_t n = chunk->n;
    sync(&pass->block);  // the gradients of the layer above have been read
    clear(chunk->streams, n, d->x);
    clear(chunk->streams, n, d->u);
    clear(chunk->streams, n, d->previous);
    output_backward(pass);
    if (!network->reads_new_state && !network->has_previous_state_grad)
        return;
    clear(chunk->streams, 2 * n, d->c);
    if (network->reads_new_state)
        state_backward(pass);
    if (has(&pass->layer->input_gate)) {
        input_gate_backward(pass);
        return;
    }
    for (int64_t b = 0; b < chunk->streams; b++) {
        float *dx = ROW(d->x, b), *dc = ROW(d->c, b);
        for (int64_t j = 0; j < n; j++)
            dx[j] += dc[j];
    }
}
