// What the programs in Go have in common: who a client is, what it counts, how it speaks with ../../crowd.py.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
)

const (
	// What midnight is, is decided when the text is prepared; how noon is written, when it is executed.
	noonText = "select extract(hour from timestamptz '2026-01-01 12:00+00' - timestamptz '2026-01-01 00:00')" +
		" || ' ' || (timestamptz '2026-01-01 12:00+00')::text"
	settingsText = "select current_setting('application_name'), current_setting('search_path')," +
		" current_setting('TimeZone'), current_setting('app.client')"
)

type client struct {
	number, committed, inserted int
	name, schema, zone, noon    string
	backends                    map[int]bool
	stopped                     bool
}

func newClient(number int) *client {
	hours := number%11 + 1
	return &client{
		number: number, name: fmt.Sprintf("crowd-%d", number), schema: fmt.Sprintf("crowd_%d", number),
		zone: fmt.Sprintf("Etc/GMT+%d", hours), noon: fmt.Sprintf("%d 2026-01-01 %02d:00:00-%02d", 12-hours, 12-hours, hours),
		backends: map[int]bool{},
	}
}

// expect tells of an answer that is not this client's own.
func (c *client) expect(what string, got, wanted interface{}) {
	if !reflect.DeepEqual(got, wanted) {
		fmt.Printf("WRONG %s: %s: %v instead of %v\n", c.name, what, got, wanted)
	}
}

func (c *client) expectSettings(name, path, zone, own string) {
	c.expect("application_name, search_path, TimeZone, app.client",
		[]string{name, path, zone, own}, []string{c.name, c.schema, c.zone, c.name})
}

func (c *client) fail(err error) {
	c.stopped = true
	fmt.Printf("ERROR %s: %s\n", c.name, strings.Join(strings.Fields(err.Error()), " "))
}

// commits: every third transaction is rolled back.
func commits(turn int) bool { return turn%3 != 2 }

// A session is what a driver makes of a client.
type session interface {
	turn(number int) error
	close() error
}

func run(connect func(*client) (session, error)) {
	count, _ := strconv.Atoi(os.Getenv("CLIENTS"))
	rounds, _ := strconv.Atoi(os.Getenv("ROUNDS"))
	input := bufio.NewReader(os.Stdin)
	pause := func(word string) {
		fmt.Println(word)
		_, _ = input.ReadString('\n')
	}
	clients, sessions := make([]*client, count), make([]session, count)
	each(count, func(i int) {
		clients[i] = newClient(i)
		var err error
		if sessions[i], err = connect(clients[i]); err != nil {
			clients[i].fail(err)
		}
	})
	pause("ready")
	each(count, func(i int) {
		for number := 0; number < rounds && !clients[i].stopped; number++ {
			if err := sessions[i].turn(number); err != nil {
				clients[i].fail(err)
			}
		}
	})
	committed, met := 0, 0
	for _, c := range clients {
		committed, met = committed+c.committed, met+len(c.backends)
	}
	pause(fmt.Sprintf("done %d %.1f", committed, float64(met)/float64(count)))
	each(count, func(i int) {
		if err := sessions[i].close(); err != nil {
			clients[i].fail(err)
		}
	})
}

// each runs work for 0 to count-1, all at the same time.
func each(count int, work func(int)) {
	var all sync.WaitGroup
	all.Add(count)
	for i := 0; i < count; i++ {
		go func(i int) {
			defer all.Done()
			work(i)
		}(i)
	}
	all.Wait()
}
