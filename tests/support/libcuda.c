/* A stand-in for libcuda.so.1, whose device memory is host memory.
 *
 * It has the functions of the driver that fastassign/devices/cuda.py calls, for NVIDIA's own bindings to find. What
 * is put into a stream is queued, and lands only when somebody waits for an event behind it. It refuses what the driver
 * would refuse, and counts as violations what a driver would not notice. Tests reach the variables and functions named
 * stub_* by ctypes; statuses are those of CUresult in cuda.h.
 *
 *     cc -shared -fPIC -pthread -Wl,-soname,libcuda.so.1 -o libcuda.so.1 libcuda.c
 */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
};

/* What tests set. */
int stub_devices = 0;         /* none for a TensorFlow that looks for them, until a test wants some */
int stub_version = 13000;     /* of the driver: functions of newer ones are not there */
int stub_fails_at = 0;        /* the copy, counted from 1, at which the device is lost */
int stub_fails_with = 700;    /* CUDA_ERROR_ILLEGAL_ADDRESS */
int stub_lock_status = 0;     /* what page-locking reports */
volatile int stub_gate = 0;   /* while it is not 0, copies and waits don't return */

/* What tests read. */
int stub_copies = 0, stub_landed = 0, stub_violations = 0;
int stub_events = 0, stub_streams = 0, stub_locked = 0, stub_retained = 0;

/* A device's primary context. */
struct context {
    int ordinal;
};

struct copy {
    void *destination;
    const void *source;
    size_t nbytes;
    struct copy *next;
};

/* Never freed: events may outlive it. */
struct stream {
    struct context *context;
    struct copy *first, *last;
    long queued, landed;
    double milliseconds; /* its clock: a byte takes a nanosecond */
    int is_destroyed;
    struct stream *next;
};

struct event {
    struct context *context;
    struct stream *stream;
    long position;
    double milliseconds;
    int is_timed;
};

struct range {
    uintptr_t start;
    size_t nbytes;
    int ordinal;
    struct range *next;
};

enum { MOST_DEVICES = 8, DEEPEST = 16, DISABLE_TIMING = 2, DEVICE_ORDINAL = 9 };

static struct context contexts[MOST_DEVICES];
static struct stream *streams;
static struct range *locked, *owned;
static int is_initialized, lost;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread struct context *stack[DEEPEST];
static __thread int depth;

static struct context *current(void) { return depth ? stack[depth - 1] : NULL; }

/* Runs the rest of a function by itself, and reports what comes before all else. */
#define ALONE(...)                                                       \
    do {                                                                 \
        int status = SUCCESS;                                            \
        pthread_mutex_lock(&mutex);                                      \
        if (!is_initialized) status = NOT_INITIALIZED;                   \
        else if (lost) status = lost;                                    \
        else if (!current()) status = INVALID_CONTEXT;                   \
        else __VA_ARGS__                                                 \
        pthread_mutex_unlock(&mutex);                                    \
        return status;                                                   \
    } while (0)

static void wait_for_gate(void) {
    while (stub_gate) usleep(100);
}

static void land(struct stream *stream, long position) {
    while (stream->landed < position) {
        struct copy *copy = stream->first;
        memcpy(copy->destination, copy->source, copy->nbytes);
        stream->first = copy->next;
        stream->landed++;
        stub_landed++;
        free(copy);
    }
}

static struct range **find(struct range **list, uintptr_t start, size_t nbytes) {
    while (*list && (start + nbytes <= (*list)->start || (*list)->start + (*list)->nbytes <= start))
        list = &(*list)->next;
    return list;
}

static void add(struct range **list, uintptr_t start, size_t nbytes, int ordinal) {
    struct range *range = malloc(sizeof *range);
    *range = (struct range){start, nbytes, ordinal, *list};
    *list = range;
}

static int is_copied_from(const struct range *range) {
    for (struct stream *stream = streams; stream; stream = stream->next)
        for (struct copy *copy = stream->landed < stream->queued ? stream->first : NULL; copy; copy = copy->next)
            if ((uintptr_t)copy->source < range->start + range->nbytes &&
                range->start < (uintptr_t)copy->source + copy->nbytes)
                return 1;
    return 0;
}

/* Says whose memory it is. */
void stub_own(uintptr_t start, size_t nbytes, int ordinal) { add(&owned, start, nbytes, ordinal); }

int stub_depth(void) { return depth; }

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (!stub_devices) return NO_DEVICE;
    is_initialized = 1;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = stub_version;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = stub_devices;
    return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= stub_devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(struct context **context, int device) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (device < 0 || device >= stub_devices) return INVALID_DEVICE;
    contexts[device].ordinal = device;
    *context = &contexts[device];
    stub_retained++;
    return SUCCESS;
}

int cuCtxPushCurrent_v2(struct context *context) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (context < contexts || context >= contexts + stub_devices || depth == DEEPEST) return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(struct context **context) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return SUCCESS;
}

int cuCtxGetCurrent(struct context **context) {
    *context = current();
    return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuStreamCreate(struct stream **result, unsigned flags) {
    (void)flags;
    ALONE({
        struct stream *stream = calloc(1, sizeof *stream);
        stream->context = current();
        stream->next = streams;
        *result = streams = stream;
        stub_streams++;
    });
}

int cuStreamSynchronize(struct stream *stream) {
    wait_for_gate();
    ALONE({
        if (stream->is_destroyed) status = INVALID_HANDLE;
        else land(stream, stream->queued);
    });
}

int cuStreamDestroy_v2(struct stream *stream) {
    ALONE({
        if (stream->is_destroyed) status = INVALID_HANDLE;
        else {
            if (stream->landed < stream->queued) stub_violations++; /* copies that nobody waited for */
            land(stream, stream->queued);
            stream->is_destroyed = 1;
            stub_streams--;
        }
    });
}

int cuMemcpyHtoDAsync_v2(uintptr_t destination, const void *source, size_t nbytes, struct stream *stream) {
    wait_for_gate();
    ALONE({
        if (stream->is_destroyed) status = INVALID_HANDLE;
        else if (stream->context != current()) status = INVALID_CONTEXT;
        else if (++stub_copies == stub_fails_at) status = lost = stub_fails_with;
        else {
            struct copy *copy = malloc(sizeof *copy);
            *copy = (struct copy){(void *)destination, source, nbytes, NULL};
            if (stream->landed < stream->queued) stream->last->next = copy;
            else stream->first = copy;
            stream->last = copy;
            stream->queued++;
            stream->milliseconds += (double)nbytes / 1e6;
        }
    });
}

int cuEventCreate(struct event **result, unsigned flags) {
    ALONE({
        *result = calloc(1, sizeof **result);
        (*result)->context = current();
        (*result)->is_timed = !(flags & DISABLE_TIMING);
        stub_events++;
    });
}

int cuEventRecord(struct event *event, struct stream *stream) {
    ALONE({
        if (stream->is_destroyed || event->context != stream->context) status = INVALID_HANDLE;
        else {
            event->stream = stream;
            event->position = stream->queued;
            event->milliseconds = stream->milliseconds;
        }
    });
}

int cuEventSynchronize(struct event *event) {
    wait_for_gate();
    ALONE({
        if (event->stream) land(event->stream, event->position);
    });
}

int cuEventElapsedTime_v2(float *milliseconds, struct event *start, struct event *end) {
    ALONE({
        if (!start->is_timed || !end->is_timed || !start->stream || !end->stream) status = INVALID_HANDLE;
        else if (start->stream->landed < start->position || end->stream->landed < end->position) status = NOT_READY;
        else *milliseconds = (float)(end->milliseconds - start->milliseconds);
    });
}

int cuEventDestroy_v2(struct event *event) {
    ALONE({
        free(event);
        stub_events--;
    });
}

int cuMemHostRegister_v2(void *start, size_t nbytes, unsigned flags) {
    (void)flags;
    ALONE({
        if (stub_lock_status) status = stub_lock_status;
        else if (!start || !nbytes) status = INVALID_VALUE;
        else if (*find(&locked, (uintptr_t)start, nbytes)) status = ALREADY_REGISTERED;
        else {
            add(&locked, (uintptr_t)start, nbytes, 0);
            stub_locked++;
        }
    });
}

int cuMemHostUnregister(void *start) {
    ALONE({
        struct range **place = find(&locked, (uintptr_t)start, 1);
        struct range *range = *place;
        if (!range || range->start != (uintptr_t)start) status = NOT_REGISTERED;
        else {
            if (is_copied_from(range)) stub_violations++;
            *place = range->next;
            free(range);
            stub_locked--;
        }
    });
}

/* Needs no context: the ordinal is that of any device whose memory it is. */
int cuPointerGetAttribute(void *data, int attribute, uintptr_t address) {
    struct range *range = *find(&owned, address, 1);
    if (!is_initialized) return NOT_INITIALIZED;
    if (attribute != DEVICE_ORDINAL || !range) return INVALID_VALUE;
    *(int *)data = range->ordinal;
    return SUCCESS;
}

static const struct {
    int status;
    const char *name, *text;
} errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the memory is registered"},
    {NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to registered memory"},
};

static int describe(int status, const char **name, const char **text) {
    *name = *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].status == status) *name = errors[i].name, *text = errors[i].text;
    return *name ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorName(int status, const char **name) {
    const char *text;
    return describe(status, name, &text);
}

int cuGetErrorString(int status, const char **text) {
    const char *name;
    return describe(status, &name, text);
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *found);

/* By their names without a version. The bindings ask for each at the version that it came with. */
static const struct {
    const char *name;
    void *function;
} functions[] = {
    {"cuInit", cuInit},
    {"cuDriverGetVersion", cuDriverGetVersion},
    {"cuDeviceGetCount", cuDeviceGetCount},
    {"cuDeviceGet", cuDeviceGet},
    {"cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain},
    {"cuCtxPushCurrent", cuCtxPushCurrent_v2},
    {"cuCtxPopCurrent", cuCtxPopCurrent_v2},
    {"cuCtxGetCurrent", cuCtxGetCurrent},
    {"cuStreamCreate", cuStreamCreate},
    {"cuStreamSynchronize", cuStreamSynchronize},
    {"cuStreamDestroy", cuStreamDestroy_v2},
    {"cuMemcpyHtoDAsync", cuMemcpyHtoDAsync_v2},
    {"cuEventCreate", cuEventCreate},
    {"cuEventRecord", cuEventRecord},
    {"cuEventSynchronize", cuEventSynchronize},
    {"cuEventElapsedTime", cuEventElapsedTime_v2},
    {"cuEventDestroy", cuEventDestroy_v2},
    {"cuMemHostRegister", cuMemHostRegister_v2},
    {"cuMemHostUnregister", cuMemHostUnregister},
    {"cuPointerGetAttribute", cuPointerGetAttribute},
    {"cuGetErrorName", cuGetErrorName},
    {"cuGetErrorString", cuGetErrorString},
    {"cuGetProcAddress", cuGetProcAddress_v2},
};

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *found) {
    (void)flags;
    *function = NULL;
    for (size_t i = 0; version <= stub_version && i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(functions[i].name, name)) *function = functions[i].function;
    if (found) *(int *)found = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
