/* The model server of the benchmark, which generates answers at any rate.
 *
 * The model's name is the script: bench-N-RATE is N tokens, RATE a second (0: as fast as they are taken). Each token is a
 * chunk of OpenAI's stream of about 270 bytes and an HTTP chunk of its own, as model servers do it; at full speed some share a
 * write, so that nothing reads faster than this writes.
 * The first token tells when the answer began, "@<microseconds of CLOCK_MONOTONIC> "; token i is "00000i ". So a client
 * knows without asking what every token says and when it was due. Prints its port.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 4096
#define REQUEST (8 << 20)

typedef struct {
    int open, streaming, closing;
    char *in;
    size_t size;            /* bytes of the request so far */
    long tokens, next;      /* of the answer; next > tokens: its end */
    double rate, began;
    char out[8192];
    size_t out_size, out_sent;
} Connection;

static Connection connections[CONNECTIONS];
static int poller;

static const char MODELS[] =
    "{\"models\":[{\"type\":\"llm\",\"key\":\"bench\",\"display_name\":\"Bench\",\"max_context_length\":1000000,"
    "\"loaded_instances\":[{\"id\":\"bench\",\"config\":{\"context_length\":1000000}}],\"capabilities\":{}},"
    "{\"type\":\"llm\",\"key\":\"bench-4-0\",\"display_name\":\"Four tokens\",\"max_context_length\":1000000,"
    "\"loaded_instances\":[{\"id\":\"bench-4-0\",\"config\":{\"context_length\":1000000}}],\"capabilities\":{}}]}";
static const char HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char START[] =
    "data: {\"id\":\"chatcmpl-0123456789abcdefghijklmnopqr\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,"
    "\"model\":\"bench\",\"system_fingerprint\":\"bench-0123456789\",";
static const char END[] = "},\"logprobs\":null,\"finish_reason\":null}]}\n\n";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void watch(int fd, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(poller, operation, fd, &event);
}

static void hang_up(int fd) {
    Connection *c = &connections[fd];
    close(fd);
    free(c->in);
    memset(c, 0, sizeof *c);
}

static void chunk(Connection *c, const char *text, size_t size) {
    c->out_size += (size_t)sprintf(c->out + c->out_size, "%zx\r\n", size);
    memcpy(c->out + c->out_size, text, size);
    memcpy(c->out + c->out_size + size, "\r\n", 2);
    c->out_size += size + 2;
}

/* Adds what comes next to `out`; 0 when it is not due, or when there is nothing more. */
static int add(Connection *c, double moment) {
    char text[600];
    int size;
    if (c->next > c->tokens)
        return 0;
    if (c->rate > 0 && c->next < c->tokens && moment < c->began + (double)c->next / c->rate)
        return 0;
    if (c->next == 0) {
        if (c->rate == 0)
            c->began = moment;
        size = sprintf(text, "%s\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"@%012llu \"%s",
                       START, (unsigned long long)(c->began * 1e6), END);
        chunk(c, text, (size_t)size);
    } else if (c->next < c->tokens) {
        static char token[600];
        static int length, digits;
        if (!length) {
            digits = sprintf(token, "%s\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"", START);
            length = digits + sprintf(token + digits, "%06d \"%s", 0, END);
        }
        long value = c->next;
        for (int place = 5; place >= 0; place--, value /= 10)
            token[digits + place] = (char)('0' + value % 10);
        chunk(c, token, (size_t)length);
    } else {
        size = sprintf(text, "%s\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n", START);
        chunk(c, text, (size_t)size);
        size = sprintf(text, "%s\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":%ld,\"total_tokens\":%ld}}\n\n",
                       START, c->tokens, c->tokens + 10);
        chunk(c, text, (size_t)size);
        chunk(c, "data: [DONE]\n\n", 14);
        memcpy(c->out + c->out_size, "0\r\n\r\n", 5);
        c->out_size += 5;
    }
    c->next++;
    return 1;
}

static int fill(Connection *c, double moment) {
    c->out_size = c->out_sent = 0;
    int added = add(c, moment);
    while (added && c->rate == 0 && c->out_size < sizeof c->out - 2000 && add(c, moment))
        ;
    return added;
}

/* Writes what is due, at most some hundred tokens so that everybody gets a turn. Returns when the next one is due. */
static double pump(int fd, double moment) {
    Connection *c = &connections[fd];
    for (int turns = 0; c->streaming && turns < 100; turns++) {
        if (c->out_sent == c->out_size && !fill(c, moment)) {
            if (c->next <= c->tokens)
                return c->began + (double)c->next / c->rate;
            c->streaming = 0;
            if (c->closing)
                hang_up(fd);
            else
                watch(fd, EPOLL_CTL_MOD, EPOLLIN);
            return 1e18;
        }
        ssize_t sent = send(fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0) {
            watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return 1e18;
        }
        c->out_sent += (size_t)sent;
    }
    return c->streaming ? moment : 1e18;
}

static void answer(int fd) {
    Connection *c = &connections[fd];
    char *body = strstr(c->in, "\r\n\r\n");
    if (!body)
        return;
    char *length = strcasestr(c->in, "content-length:");
    size_t whole = (size_t)(body + 4 - c->in) + (length && length < body ? strtoul(length + 15, NULL, 10) : 0);
    if (c->size < whole)
        return;
    char *close_it = strcasestr(c->in, "connection: close");
    c->closing = close_it && close_it < body;
    c->size = 0;
    if (!strncmp(c->in, "GET", 3)) {
        char text[1024];
        int size = sprintf(text, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                           sizeof MODELS - 1, MODELS);
        if (send(fd, text, (size_t)size, MSG_NOSIGNAL) != size || c->closing)
            hang_up(fd);
        return;
    }
    char *script = strstr(body, "\"bench-");
    if (!script || sscanf(script, "\"bench-%ld-%lf", &c->tokens, &c->rate) != 2) {
        hang_up(fd);
        return;
    }
    send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL);
    c->began = now();
    c->next = 0;
    c->out_size = c->out_sent = 0;
    c->streaming = 1;
}

static void take(int fd) {
    Connection *c = &connections[fd];
    if (!c->in)
        c->in = malloc(REQUEST);
    ssize_t got = recv(fd, c->in + c->size, REQUEST - 1 - c->size, 0);
    if (got <= 0) {
        hang_up(fd);
        return;
    }
    c->size += (size_t)got;
    c->in[c->size] = 0;
    if (!c->streaming)
        answer(fd);
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 2048))
        return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    poller = epoll_create1(0);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    double due = 1e18;
    for (;;) {
        struct epoll_event events[512];
        double wait = due - now();
        struct timespec timeout = {0, wait <= 0 ? 0 : wait < 1 ? (long)(wait * 1e9) : 0};
        if (wait >= 1)
            timeout.tv_sec = 1;
        int count = epoll_pwait2(poller, events, 512, &timeout, NULL);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int made = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (made < 0 || made >= CONNECTIONS)
                    return 2;
                setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                connections[made].open = 1;
                watch(made, EPOLL_CTL_ADD, EPOLLIN);
            } else if (connections[fd].open) {
                if (events[i].events & EPOLLOUT)
                    watch(fd, EPOLL_CTL_MOD, EPOLLIN);
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                    take(fd);
            }
        }
        double moment = now();
        due = 1e18;
        for (int fd = 0; fd < CONNECTIONS; fd++)
            if (connections[fd].streaming) {
                double next = pump(fd, moment);
                due = next < due ? next : due;
            }
    }
}
