/* The load client of the benchmark: many streams at once, each checked to the last character.
 *
 *     client PORT < work > outcome
 *
 * The work is a list of lines: "connection" opens one (all at once, requests on it one after the other), and
 * "request KIND TOKENS RATE SIZE" is followed by SIZE bytes to be sent. KIND is O for a stream of OpenAI's, F for one of
 * Fireside's, P for a plain answer. Of a stream it checks status, order and completeness of the text (see upstream.c),
 * usage, and the end. The outcome is a line of JSON a request, then one with how late the tokens came, in microseconds after
 * they were due. Exit code 1 when any request went wrong.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 300.0
#define LINE (1 << 20)

typedef struct Request {
    struct Request *next;
    char kind, *bytes;
    size_t size;
    long tokens;
    double rate;
} Request;

typedef struct {
    int fd, number;
    Request *request, *last;
    double sent, first, began;
    long token, place, events, received;
    int status, head, chunked, usage, done, over;
    long left;              /* bytes of the chunk, or of the body */
    char mark[64];          /* of the head: its last line so far */
    char *line;
    size_t size;
    char why[160];
} Connection;

static Connection *connections;
static int count, poller, running, failed;
static uint32_t *late;
static size_t late_count, late_room;
static double moment;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void wrong(Connection *c, const char *why) {
    if (!c->why[0])
        snprintf(c->why, sizeof c->why, "%s", why);
}

static void token_came(Connection *c) {
    if (!c->token)
        c->first = moment;
    if (c->request->rate > 0) {
        if (late_count == late_room)
            late = realloc(late, (late_room = late_room ? 2 * late_room : 1 << 16) * sizeof *late);
        double by = (moment - c->began - (double)c->token / c->request->rate) * 1e6;
        late[late_count++] = by < 0 ? 0 : (uint32_t)by;
    }
    c->token++;
}

/* The text of the answer, a piece at a time: "@<12 digits> 000001 000002 ..." */
static void text(Connection *c, const char *piece, const char *end) {
    for (; piece < end; piece++) {
        if (c->token == 0) {
            if (c->place == 0 ? *piece != '@' : c->place == 13 ? *piece != ' ' : *piece < '0' || *piece > '9')
                wrong(c, "the first token is another");
            if (c->place > 0 && c->place < 13)
                c->began = c->began * 10 + (*piece - '0');
            if (++c->place == 14) {
                c->place = 0;
                c->began /= 1e6;
                token_came(c);
            }
            continue;
        }
        static const long powers[] = {100000, 10000, 1000, 100, 10, 1};
        char expected = c->place == 6 ? ' ' : (char)('0' + c->token / powers[c->place] % 10);
        if (*piece != expected)
            wrong(c, "a token is missing, twice there or astray");
        if (++c->place == 7) {
            c->place = 0;
            token_came(c);
        }
    }
}

static void event(Connection *c) {
    char *line = c->line, key[64];
    if (!strncmp(line, "event: usage", 12) || !strncmp(line, "event: done", 11))
        c->events++;
    if (strncmp(line, "data: ", 6))
        return;
    int ours = c->request->kind == 'F';
    char *piece = strstr(line, ours ? "\"delta\": \"" : "\"content\":\"");
    if (piece) {
        c->events++;
        piece += ours ? 10 : 11;
        char *end = strchr(piece, '"');
        text(c, piece, end ? end : piece);
    }
    snprintf(key, sizeof key, ours ? "\"completion_tokens\": %ld," : "\"completion_tokens\":%ld,", c->request->tokens);
    if (!piece && strstr(line, key))
        c->usage = 1;
    if (ours ? strstr(line, "\"status\": \"ok\"") != NULL : !strcmp(line, "data: [DONE]"))
        c->done++;
}

static void body(Connection *c, const char *data, size_t size) {
    c->received += (long)size;
    if (c->request->kind == 'P')
        return;
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t length = end ? (size_t)(end - data) : size;
        if (c->size + length >= LINE) {
            wrong(c, "a line is too long");
            return;
        }
        memcpy(c->line + c->size, data, length);
        c->size += length;
        if (!end)
            return;
        c->line[c->size] = 0;
        if (c->size)
            event(c);
        c->size = 0;
        data += length + 1;
        size -= length + 1;
    }
}

static void begin(Connection *c) {
    Request *r = c->request;
    c->sent = now();
    c->first = c->began = 0;
    c->token = c->place = c->events = c->received = c->left = 0;
    c->status = c->chunked = c->usage = c->done = c->over = 0;
    c->head = 1;
    c->size = 0;
    c->mark[0] = c->why[0] = 0;
    for (size_t sent = 0; sent < r->size;) {
        ssize_t some = send(c->fd, r->bytes + sent, r->size - sent, MSG_NOSIGNAL);
        if (some <= 0) {
            wrong(c, "it could not be sent");
            return;
        }
        sent += (size_t)some;
    }
}

static void end_request(Connection *c) {
    Request *r = c->request;
    if (c->status != 200)
        wrong(c, "the status is not 200");
    if (r->kind != 'P') {
        if (c->token != r->tokens || c->place)
            wrong(c, "the text is not complete");
        if (!c->usage)
            wrong(c, "there was no usage");
        if (c->done != 1)
            wrong(c, "there was not exactly one end");
    }
    failed |= c->why[0] != 0;
    printf("{\"connection\":%d,\"kind\":\"%c\",\"status\":%d,\"tokens\":%ld,\"events\":%ld,\"bytes\":%ld,\"sent\":%.6f,\"first\":%.6f,"
           "\"ended\":%.6f,\"began\":%.0f,\"why\":\"%s\"}\n",
           c->number, r->kind, c->status, c->token, c->events, c->received, c->sent, c->first, now(), c->began * 1e6, c->why);
    c->request = c->why[0] ? NULL : r->next;
    if (c->request) {
        begin(c);
    } else {
        close(c->fd);
        running--;
    }
}

/* Head, then a body of known length or of chunks. */
static void take(Connection *c, const char *data, size_t size) {
    for (size_t i = 0; i < size && !c->over;) {
        if (c->head || (c->chunked && c->left == 0)) {
            size_t length = strlen(c->mark);
            char letter = data[i++];
            if (letter != '\n') {
                if (letter != '\r' && length + 1 < sizeof c->mark)
                    c->mark[length] = letter, c->mark[length + 1] = 0;
                continue;
            }
            if (c->head) {
                sscanf(c->mark, "HTTP/1.1 %d", &c->status);
                if (!strncasecmp(c->mark, "content-length:", 15))
                    c->left = atol(c->mark + 15);
                if (!strncasecmp(c->mark, "transfer-encoding: chunked", 26))
                    c->chunked = 1;
                if (!length) {
                    c->head = 0;
                    c->over = !c->chunked && !c->left;
                }
            } else if (c->chunked == 2) {
                c->over = 1; /* the line after the last chunk */
            } else if (length) {
                c->left = strtol(c->mark, NULL, 16);
                c->chunked = c->left ? 1 : 2;
            }
            c->mark[0] = 0;
            continue;
        }
        size_t part = size - i < (size_t)c->left ? size - i : (size_t)c->left;
        body(c, data + i, part);
        i += part;
        c->left -= (long)part;
        if (!c->left && !c->chunked)
            c->over = 1;
    }
}

static void read_work(void) {
    char line[200];
    int room = 0;
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 'c') {
            if (count == room)
                connections = realloc(connections, (size_t)(room = room ? 2 * room : 64) * sizeof *connections);
            memset(&connections[count], 0, sizeof *connections);
            connections[count].number = count;
            connections[count++].line = malloc(LINE);
            continue;
        }
        Request *r = calloc(1, sizeof *r);
        if (sscanf(line, "request %c %ld %lf %zu", &r->kind, &r->tokens, &r->rate, &r->size) != 4 || !count)
            exit(2);
        r->bytes = malloc(r->size);
        if (fread(r->bytes, 1, r->size, stdin) != r->size)
            exit(2);
        Connection *c = &connections[count - 1];
        if (c->last)
            c->last->next = r;
        else
            c->request = r;
        c->last = r;
    }
}

static int order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0"));
    read_work();
    poller = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        Connection *c = &connections[i];
        int yes = 1;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
            return 2;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    }
    running = count;
    double start = now();
    for (int i = 0; i < count; i++)
        begin(&connections[i]);
    static char data[256 << 10];
    while (running && now() - start < PATIENCE) {
        struct epoll_event events[512];
        int ready = epoll_wait(poller, events, 512, 1000);
        for (int i = 0; i < ready; i++) {
            Connection *c = &connections[events[i].data.u32];
            ssize_t got = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
            moment = now();
            if (got <= 0) {
                wrong(c, "the connection was closed");
                end_request(c);
                continue;
            }
            take(c, data, (size_t)got);
            if (c->over || c->why[0])
                end_request(c);
        }
    }
    for (int i = 0; i < count; i++)
        if (running && connections[i].request) {
            wrong(&connections[i], "it did not end in time");
            end_request(&connections[i]);
        }
    qsort(late, late_count, sizeof *late, order);
    size_t on_time = 0;
    while (on_time < late_count && late[on_time] <= 100000)
        on_time++;
    printf("{\"began\":%.6f,\"ended\":%.6f,\"paced\":%zu,\"on_time\":%zu,\"late_p50\":%u,\"late_p99\":%u}\n", start, now(), late_count,
           on_time, late_count ? late[late_count / 2] : 0, late_count ? late[late_count * 99 / 100] : 0);
    return failed;
}
