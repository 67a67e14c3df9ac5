// lib/pq at its defaults: a query with parameters is an unnamed statement, prepared in one batch and executed in the
// next; Prepare makes one with a name.
package main

import (
	"database/sql"
	"fmt"

	_ "github.com/lib/pq"
)

type pqSession struct {
	*client
	db    *sql.DB
	owner *sql.Stmt
}

func main() {
	run(func(c *client) (session, error) {
		db, err := sql.Open("postgres", fmt.Sprintf( // the rest is in libpq's environment variables
			"application_name=%s search_path=%s timezone=%s", c.name, c.schema, c.zone))
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1) // so that each client has a login of its own
		if _, err := db.Exec("select set_config('app.client', $1, false)", c.name); err != nil {
			return nil, err
		}
		owner, err := db.Prepare("select owner from box where id = $1")
		return &pqSession{c, db, owner}, err
	})
}

func (s *pqSession) turn(number int) error {
	tx, err := s.db.Begin()
	if err != nil {
		return err
	}
	if err := s.read(tx, number); err != nil {
		return err
	}
	if _, err := tx.Exec("insert into public.ledger values ($1, $2)", s.number, number); err != nil {
		return err
	}
	if _, err := tx.Exec("insert into box (owner, note) values ($1, 'later')", s.number); err != nil {
		return err
	}
	var rows int
	if err := tx.QueryRow("select count(*) from box where note = $1", "later").Scan(&rows); err != nil {
		return err
	}
	s.expect("the own rows", rows, s.inserted+1)
	if !commits(number) {
		return tx.Rollback()
	}
	s.committed++
	s.inserted++
	return tx.Commit()
}

func (s *pqSession) read(tx *sql.Tx, number int) error {
	var name, path, zone, own, noon string
	var owner, sum, pid int
	if err := tx.QueryRow(settingsText).Scan(&name, &path, &zone, &own); err != nil {
		return err
	}
	s.expectSettings(name, path, zone, own)
	if err := tx.Stmt(s.owner).QueryRow(number%3 + 1).Scan(&owner); err != nil {
		return err
	}
	s.expect("a shared text under the own search_path, prepared", owner, s.number)
	if err := tx.QueryRow("select owner from box where id = $1", number%3+1).Scan(&owner); err != nil {
		return err
	}
	s.expect("the same, unnamed", owner, s.number)
	text := fmt.Sprintf("select $1::int + %d", s.number*1000)
	if err := tx.QueryRow(text, number).Scan(&sum); err != nil {
		return err
	}
	s.expect("the own text", sum, s.number*1000+number)
	if err := tx.QueryRow(noonText).Scan(&noon); err != nil {
		return err
	}
	s.expect("noon in the own zone", noon, s.noon)
	if err := tx.QueryRow("select pg_backend_pid()").Scan(&pid); err != nil {
		return err
	}
	s.backends[pid] = true
	return nil
}

func (s *pqSession) close() error { return s.db.Close() }
