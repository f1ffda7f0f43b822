// One training step of gated networks, each computed in a CPU's caches from its tokens to the
// gradients of all its weights.
//
// rnn/native/engine.py calls rnn_step; see it for the layout of the arrays. K is the number of
// networks, B the number of streams, n the state size, V the vocabulary size, P the size of the
// flat values of all networks.
//
// Streams are independent but for the sums over them in the gradients of the weights. Networks are
// divided among threads; where that would leave threads without work, the threads share the streams of
// one network after another.

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "layer.h"

typedef struct {
    int64_t count, layers, n, vocabulary, streams;  // K, layers, n, V, B
    int64_t threads;
    int64_t most_packed;                            // most of the networks' packed_size
    int64_t scratch_size;                           // rnn_scratch_size
    const Network *networks;                        // (K)
    const float *weights;                           // (P)
    float *grads;                                   // (P); NULL without a backward pass
    float *const *states, *const *next_states;      // (layers) of (K, B, n)
    const int64_t *tokens, *targets;                // (B)
    float *logits;                                  // (K, B, V); NULL with a backward pass
    float *losses;                                  // (K, B); NULL without a backward pass
    Number *scratch;                                // (threads, scratch_size)
} Step;

int64_t rnn_packed_size(int64_t count, int64_t columns) { return packed_size(count, columns); }

// Streams of a block: of the number of streams alone, so that threads do not change the sums.
static int64_t block_size(int64_t streams)
{
    int64_t blocks = (streams + BLOCK_STREAMS - 1) / BLOCK_STREAMS;
    return round_up((streams + blocks - 1) / blocks, 32);
}

// Rows of a factor along whose sum are `count` numbers, with those of zeros at its end.
static int64_t padded(int64_t count) { return numbers(2) == 2 ? count : 2 * depth_of(count); }

// ------------------------------------------------------------------------------ packed weights

// Pack the weight of one of a network's maps, the head or one of those of its layers in turn, for
// its product and for the gradient of its input.
static void pack_one(
    const Step *step, const Network *network, int64_t index, Number *packed, Number *scratch)
{
    const Map *map = index == 0 ? &network->head : (const Map *)network->layers + (index - 1);
    if (!has(map))
        return;
    int64_t n = step->n, outputs = map->outputs, along = numbers(outputs);
    for (int64_t part = 0; part * n < map->inputs; part++) {
        Number *next = scratch;
        Rows weight = rows_of(
            &next, (float *)step->weights + map->weight + part * n * outputs, n, outputs);
        round_rows(n, outputs, weight);
        pack(numbers(n), outputs, depth_of(n), weight.across,
            packed + map->packed + part * packed_size(n, outputs));
        if (step->grads != NULL)
            pack_transposed(n, along, depth_of(outputs), weight.along, weight.along_stride,
                packed + map->transposed + part * packed_size(outputs, n));
    }
}

// ------------------------------------------------------------------------------ a block of streams

// Replace the logits of a stream by the gradient of its loss, times `scale`; return the loss. The
// greatest and the sum are taken in SUMS parts, which the compiler computes side by side.
static float cross_entropy(float *logits, int64_t vocabulary, int64_t target, float scale)
{
    enum { SUMS = 32 };
    int64_t whole = vocabulary / SUMS * SUMS;
    float greatest_of[SUMS], sum_of[SUMS], greatest = logits[0], sum = 0.0f;
    for (int i = 0; i < SUMS; i++) {
        greatest_of[i] = logits[0];
        sum_of[i] = 0.0f;
    }
    for (int64_t j = 0; j < whole; j += SUMS)
        for (int i = 0; i < SUMS; i++)
            greatest_of[i] = logits[j + i] > greatest_of[i] ? logits[j + i] : greatest_of[i];
    for (int i = 0; i < SUMS; i++)
        greatest = greatest_of[i] > greatest ? greatest_of[i] : greatest;
    for (int64_t j = whole; j < vocabulary; j++)
        greatest = logits[j] > greatest ? logits[j] : greatest;
    float target_logit = logits[target] - greatest;
    for (int64_t j = 0; j < whole; j += SUMS)
        for (int i = 0; i < SUMS; i++) {
            logits[j + i] = fast_exp(logits[j + i] - greatest);
            sum_of[i] += logits[j + i];
        }
    for (int i = 0; i < SUMS; i++)
        sum += sum_of[i];
    for (int64_t j = whole; j < vocabulary; j++) {
        logits[j] = fast_exp(logits[j] - greatest);
        sum += logits[j];
    }
    float factor = scale / sum;
    for (int64_t j = 0; j < vocabulary; j++)
        logits[j] *= factor;
    logits[target] -= scale;
    return logf(sum) - target_logit;
}

// Find the different tokens among the streams' and write them to `different`; return their count.
static int64_t find_different(
    const int64_t *tokens, int64_t streams, int32_t *places, int32_t *index, int64_t *different)
{
    int64_t count = 0;
    for (int64_t b = 0; b < streams; b++) {
        // The place of a token that has none yet is any number: it is right if the token is there.
        int32_t place = places[tokens[b]];
        if (place < 0 || place >= count || different[place] != tokens[b]) {
            place = places[tokens[b]] = (int32_t)count;
            different[count++] = tokens[b];
        }
        index[b] = place;
    }
    return count;
}

// Write the embeddings of tokens to x.
static void embed(
    const Block *block, const Network *network, const int64_t *tokens, int64_t count, Rows x)
{
    const float *bias = block->weights + network->embedding.bias;
    for (int64_t b = 0; b < count; b++) {
        const float *row = block->weights + network->embedding.weight + tokens[b] * block->n;
        for (int64_t j = 0; j < block->n; j++)
            ROW(x, b)[j] = row[j] + bias[j];
    }
}

// Add the gradients dx of the streams' inputs to those of the different tokens' rows, and these to
// the gradients of the embedding.
static void embedding_grads(
    const Block *block, const Network *network, const Repeated *among, const int32_t *index,
    int64_t count, const int64_t *different, Rows dx)
{
    for (int64_t b = 0; b < block->streams; b++) {
        float *row = ROW(among->grads, index[b]);
        for (int64_t j = 0; j < block->n; j++)
            row[j] += ROW(dx, b)[j];
    }
    add_sum(count, block->n, among->grads, 0, block->grads + network->embedding.bias);
    for (int64_t u = 0; u < count; u++) {
        float *row = block->grads + network->embedding.weight + different[u] * block->n;
        for (int64_t j = 0; j < block->n; j++)
            row[j] += ROW(among->grads, u)[j];
    }
}

// Memory of the results of a block of streams, and of the tokens.
typedef struct {
    Rows x, rows, grads, products, logits;  // rows, grads and products are of the different tokens
    Gradients d;
    int32_t *places;     // (V)
    int32_t *index;      // (streams)
    int64_t *different;  // (streams)
    int64_t *count;      // of different tokens
} Memory;

// Take memory for a block from `next` on; return its end.
static Number *take_memory(
    const Step *step, int64_t streams, Number *next, Memory *memory, Activations *layers)
{
    int64_t n = step->n, rows = padded(streams);
    memory->count = (int64_t *)next;
    next += 16;
    memory->different = (int64_t *)next;
    next += 2 * round_up(streams, 16);
    memory->index = (int32_t *)next;
    next += round_up(streams, 16);
    memory->places = (int32_t *)next;
    next += round_up(step->vocabulary, 16);
    memory->x = take_rows(&next, streams, n);
    memory->rows = take_rows(&next, rows, n);
    memory->grads = take_rows(&next, rows, n);
    memory->products = take_rows(&next, rows, 2 * n);
    memory->logits = take_rows(&next, streams, step->vocabulary);
    memory->d = (Gradients){
        .y = take_rows(&next, streams, n),
        .x = take_rows(&next, streams, n),
        .u = take_rows(&next, streams, n),
        .previous = take_rows(&next, streams, n),
        .o = take_rows(&next, streams, n),
        .c = take_rows(&next, streams, 2 * n),
        .gate = take_rows(&next, streams, 2 * n),
    };
    for (int64_t l = 0; l < step->layers; l++)
        layers[l] = (Activations){
            .h = rows_of(&next, NULL, streams, n),
            .u = rows_of(&next, NULL, streams, n),
            .i = take_rows(&next, streams, 2 * n),
            .c = take_rows(&next, streams, 2 * n),
            .candidate = take_rows(&next, streams, n),
            .z = take_rows(&next, streams, n),
            .mixed = take_rows(&next, streams, n),
            .f = take_rows(&next, streams, n),
            .o = take_rows(&next, streams, n),
            .gate = take_rows(&next, streams, n),
            .y = take_rows(&next, streams, n),
        };
    return next + TILE_COLUMNS;  // which the last columns of a product may read
}

// Set the states of a layer, and what stands for the results of gates that it lacks.
static void complete_activations(
    const Step *step, const Layer *layer, int64_t l, int64_t place, Activations *a)
{
    a->h.values = (float *)step->states[l] + place;
    a->u.values = step->next_states[l] + place;
    if (numbers(2) == 2) {  // the forms as a factor are the values
        a->h.along = a->h.across = (Number *)a->h.values;
        a->u.along = a->u.across = (Number *)a->u.values;
    }
    a->gated_x = a->x;
    a->gated_h = a->h;
    if (has(&layer->input_gate)) {
        a->gated_x = a->c;
        a->gated_h = columns_from(a->c, step->n);
    }
    if (!has(&layer->forget_gate))
        a->mixed = a->u;
    if (!has(&layer->state_gate))
        a->candidate = a->mixed;
}

// Embed the tokens of a block.
static void embed_streams(
    const Step *step, const Network *network, const Block *block, const int64_t *tokens,
    const Memory *memory, Repeated *among, Rows *x)
{
    int64_t streams = block->streams;
    if (block->thread == 0)
        *memory->count
            = find_different(tokens, streams, memory->places, memory->index, memory->different);
    sync(block);
    int64_t count = *memory->count;
    among->count = padded(count);
    among->rows = memory->rows;
    among->grads = memory->grads;
    among->products = memory->products;
    *x = memory->x;
    if (4 * count <= 3 * streams) {  // else too few repeat for their products to be worth sharing
        x->among = among;
        x->index = memory->index;
    }
    if (block->thread == 0) {
        clear(among->count, step->n, among->grads);
        if (x->among != NULL) {
            embed(block, network, memory->different, count, among->rows);
            Rows rest = {.values = ROW(among->rows, count), .stride = among->rows.stride};
            clear(among->count - count, step->n, rest);
            round_rows(among->count, step->n, among->rows);
        }
    }
    int64_t first;
    Block chunk = chunk_of(block, &first);
    embed(&chunk, network, tokens + first, chunk.streams, rows_from(*x, first));
    round_rows(chunk.streams, step->n, rows_from(*x, first));
}

// Compute the logits, and with gradients the losses and the gradients of the head, of which all_d is
// that of its input.
static void head_step(
    const Step *step, const Network *network, const Block *block, int64_t row,
    const int64_t *targets, Rows all_y, Rows all_logits, Rows all_d)
{
    int64_t vocabulary = step->vocabulary, first;
    Block chunk = chunk_of(block, &first);
    Rows y = rows_from(all_y, first), logits = rows_from(all_logits, first);
    map_part(&chunk, &network->head, 0, y, logits);
    if (block->grads == NULL)
        return;
    for (int64_t b = 0; b < chunk.streams; b++)
        step->losses[row + first + b] = cross_entropy(
            ROW(logits, b), vocabulary, targets[first + b], 1.0f / step->streams);
    Rows d = rows_from(all_d, first);
    round_rows(chunk.streams, vocabulary, logits);
    clear(chunk.streams, chunk.n, d);
    input_grads(&chunk, &network->head, 0, y, logits, d);
    sync(block);
    bias_grads(block, &network->head, all_logits);
    weight_grads(block, &network->head, 0, all_y, all_logits);
}

// Compute the streams of network k from `first` on, in memory from `next` on.
static void block_step(const Step *step, int64_t k, int64_t first, const Block *block, Number *next)
{
    const Network *network = step->networks + k;
    int64_t row = k * step->streams + first, place = row * step->n;
    Activations layers[step->layers];
    Memory memory;
    Number *end = take_memory(step, block->streams, next, &memory, layers);
    if (padded(block->streams) != block->streams) {  // zeros at the end of sums over the streams
        if (block->thread == 0)
            memset(next, 0, (end - next) * sizeof(Number));
        sync(block);
    }
    Repeated among;
    Rows x;
    embed_streams(step, network, block, step->tokens + first, &memory, &among, &x);
    Pass pass = {.network = network, .block = *block, .whole_d = memory.d};
    for (int64_t l = 0; l < step->layers; l++) {
        layers[l].x = x;
        complete_activations(step, network->layers + l, l, place, layers + l);
        pass.layer = network->layers + l;
        pass.whole = layers[l];
        divide(&pass);
        layer_forward(&pass);
        x = layers[l].y;
    }
    Rows logits = memory.logits;
    if (block->grads == NULL) {
        logits.values = step->logits + row * step->vocabulary;
        logits.stride = step->vocabulary;
    }
    head_step(step, network, block, row, step->targets + first, x, logits, memory.d.x);
    if (block->grads == NULL)
        return;
    for (int64_t l = step->layers - 1; l >= 0; l--) {
        Rows d_output = pass.whole_d.x;
        pass.whole_d.x = pass.whole_d.y;
        pass.whole_d.y = d_output;
        pass.layer = network->layers + l;
        pass.whole = layers[l];
        divide(&pass);
        layer_backward(&pass);
        if (!network->output_depends_on_input)
            break;  // d.x is zero, and so is every gradient of the layers below
    }
    sync(block);
    if (block->thread == 0)
        embedding_grads(
            block, network, &among, memory.index, *memory.count, memory.different,
            pass.whole_d.x);
}

// ------------------------------------------------------------------------------ all networks

// Return the Numbers of memory that a network needs, or the packing of one of its weights.
static int64_t results_size(const Step *step)
{
    Activations layers[step->layers];
    Memory memory;
    Number *start = (Number *)step, *next = start;  // only distances count
    take_rows(&next, step->n, 2 * step->n > step->vocabulary ? 2 * step->n : step->vocabulary);
    int64_t packing = next - start, streams = least(block_size(step->streams), step->streams);
    int64_t block = take_memory(step, streams, start, &memory, layers) - start;
    return round_up(packing > block ? packing : block, 64);
}

// Return the Numbers of memory that each thread needs.
int64_t rnn_scratch_size(const Step *step)
{
    return results_size(step) + round_up(step->most_packed, 64);
}

// Compute network k as one of the threads that share it, with memory for the network, and for the
// packing of a weight.
static void network_step(
    const Step *step, int64_t k, int64_t thread, int64_t threads, Number *memory, Number *packing)
{
    const Network *network = step->networks + k;
    Number *packed = memory + results_size(step);
    Block block = {
        .n = step->n,
        .thread = thread,
        .threads = threads,
        .weights = step->weights,
        .packed = packed,
        .grads = step->grads,
        .is_first = 1,
    };
    sync(&block);  // the memory is that of the network before
    for (int64_t index = thread; index < 1 + MAP_COUNT * step->layers; index += threads)
        pack_one(step, network, index, packed, packing);
    if (step->grads != NULL && thread == 0) {
        int is_whole = network->output_depends_on_input
            && (network->reads_new_state || network->has_previous_state_grad);
        int64_t weights = step->vocabulary * step->n;  // of the embedding
        if (is_whole) {  // every other gradient is written
            memset(step->grads + network->embedding.weight, 0, weights * sizeof(float));
            memset(step->grads + network->embedding.bias, 0, step->n * sizeof(float));
        } else {
            memset(step->grads + network->begin, 0,
                (network->end - network->begin) * sizeof(float));
        }
    }
    int64_t size = block_size(step->streams);
    for (int64_t first = 0; first < step->streams; first += size) {
        sync(&block);
        block.streams = least(step->streams - first, size);
        block_step(step, k, first, &block, memory);
        block.is_first = 0;
    }
}

// Advance all networks by one time step and, with gradients, write those of their mean losses. Return
// 0, or 1 if a token is not in the vocabulary.
int rnn_step(const Step *step)
{
    for (int64_t b = 0; b < step->streams; b++)
        if ((uint64_t)step->tokens[b] >= (uint64_t)step->vocabulary
            || (step->grads && (uint64_t)step->targets[b] >= (uint64_t)step->vocabulary))
            return 1;
    int is_shared = step->count % step->threads != 0 && step->count < 2 * step->threads;
    #pragma omp parallel num_threads(step->threads)
    {
        int64_t thread = 0, threads = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        threads = omp_get_num_threads();
#endif
        Number *scratch = step->scratch + thread * step->scratch_size;
        configure_tiles();
        if (is_shared) {
            for (int64_t k = 0; k < step->count; k++)
                network_step(step, k, thread, threads, step->scratch, scratch);
        } else {
            #pragma omp for schedule(dynamic)
            for (int64_t k = 0; k < step->count; k++)
                network_step(step, k, 0, 1, scratch, scratch);
        }
        release_tiles();
    }
    return 0;
}
