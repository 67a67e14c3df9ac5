// pgx 4 at its defaults: every statement is prepared and cached under a name of the driver's.
package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v4"
)

type pgxSession struct {
	*client
	conn *pgx.Conn
}

func main() {
	run(func(c *client) (session, error) {
		config, err := pgx.ParseConfig("") // libpq's environment variables
		if err != nil {
			return nil, err
		}
		config.RuntimeParams = map[string]string{
			"application_name": c.name, "search_path": c.schema, "timezone": c.zone}
		conn, err := pgx.ConnectConfig(context.Background(), config)
		if err != nil {
			return nil, err
		}
		_, err = conn.Exec(context.Background(), "select set_config('app.client', $1, false)", c.name)
		return &pgxSession{c, conn}, err
	})
}

func (s *pgxSession) turn(number int) error {
	background := context.Background()
	tx, err := s.conn.Begin(background)
	if err != nil {
		return err
	}
	if err := s.read(tx, number); err != nil {
		return err
	}
	if _, err := tx.Exec(background, "insert into public.ledger values ($1, $2)", s.number, number); err != nil {
		return err
	}
	if err := s.write(tx); err != nil {
		return err
	}
	if !commits(number) {
		return tx.Rollback(background)
	}
	s.committed++
	s.inserted++
	return tx.Commit(background)
}

func (s *pgxSession) read(tx pgx.Tx, number int) error {
	background := context.Background()
	var name, path, zone, own, noon string
	var owner, sum, pid int
	if err := tx.QueryRow(background, settingsText).Scan(&name, &path, &zone, &own); err != nil {
		return err
	}
	s.expectSettings(name, path, zone, own)
	if err := tx.QueryRow(background, "select owner from box where id = $1", number%3+1).Scan(&owner); err != nil {
		return err
	}
	s.expect("a shared text under the own search_path", owner, s.number)
	text := fmt.Sprintf("select $1::int + %d", s.number*1000)
	if err := tx.QueryRow(background, text, number).Scan(&sum); err != nil {
		return err
	}
	s.expect("the own text", sum, s.number*1000+number)
	if err := tx.QueryRow(background, noonText).Scan(&noon); err != nil {
		return err
	}
	s.expect("noon in the own zone", noon, s.noon)
	if err := tx.QueryRow(background, "select pg_backend_pid()").Scan(&pid); err != nil {
		return err
	}
	s.backends[pid] = true
	return nil
}

// write sends two statements in a batch: one write, one Sync.
func (s *pgxSession) write(tx pgx.Tx) error {
	batch := &pgx.Batch{}
	batch.Queue("insert into box (owner, note) values ($1, 'later')", s.number)
	batch.Queue("select count(*) from box where note = $1", "later")
	results := tx.SendBatch(context.Background(), batch)
	var rows int
	if _, err := results.Exec(); err != nil {
		return err
	}
	if err := results.QueryRow().Scan(&rows); err != nil {
		return err
	}
	s.expect("the own rows", rows, s.inserted+1)
	return results.Close()
}

func (s *pgxSession) close() error { return s.conn.Close(context.Background()) }
