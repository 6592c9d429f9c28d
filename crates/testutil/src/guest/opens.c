/* opens DIR READY: prints which files of the filesystem of DIR are opened, executed and read from
 * now on, each once, as lines "open PATH", "exec PATH" and "read PATH". Makes the file READY when
 * it has begun. See fanotify(7). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <unistd.h>

#define MOST 8192

static const struct { unsigned long long bit; const char *word; } EVENTS[] = {
    {FAN_OPEN, "open"}, {FAN_OPEN_EXEC, "exec"}, {FAN_ACCESS, "read"},
};

static char *told[MOST];
static size_t count;

static void tell(const char *word, const char *path) {
    char line[4200];
    snprintf(line, sizeof line, "%s %s\n", word, path);
    for (size_t i = 0; i < count; i++)
        if (!strcmp(told[i], line))
            return;
    if (count < MOST && (told[count] = strdup(line)))
        count++;
    fputs(line, stdout);
    fflush(stdout);
}

int main(int argc, char **argv) {
    _Alignas(struct fanotify_event_metadata) static char events[1 << 16];
    int fan = fanotify_init(FAN_CLASS_NOTIF | FAN_UNLIMITED_QUEUE, O_RDONLY | O_LARGEFILE);
    if (argc != 3 || fan < 0 ||
        fanotify_mark(fan, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN | FAN_OPEN_EXEC | FAN_ACCESS, AT_FDCWD, argv[1])) {
        perror("opens");
        return 1;
    }
    close(open(argv[2], O_CREAT | O_WRONLY, 0600));
    for (;;) {
        ssize_t length = read(fan, events, sizeof events);
        struct fanotify_event_metadata *event = (void *)events;
        for (; FAN_EVENT_OK(event, length); event = FAN_EVENT_NEXT(event, length)) {
            char link[64], path[4097];
            if (event->fd < 0)
                continue;
            snprintf(link, sizeof link, "/proc/self/fd/%d", event->fd);
            ssize_t size = readlink(link, path, sizeof path - 1);
            for (size_t i = 0; size > 0 && i < sizeof EVENTS / sizeof *EVENTS; i++)
                if (event->mask & EVENTS[i].bit) {
                    path[size] = 0;
                    tell(EVENTS[i].word, path);
                }
            close(event->fd);
        }
    }
}
