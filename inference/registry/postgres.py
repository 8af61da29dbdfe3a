"""Search in PostgreSQL with pgvector, for references that outgrow one machine: `pip install "docmetric[postgres]"`.

    index = open_index("postgresql://user@host/database", depth, name)                 # exact: PostgreSQL reads every row
    index = open_index("postgresql://host/database?index=hnsw&ef=400", depth, name)    # approximate, recall measured

Several processes may use one index. A table for each index holds its rows; `docmetric_index` holds the event, the number of
rows and the measured recall of all of them. PostgreSQL proposes rows by sums in float32; the best are scored again here in
float64, so that answers and their order are those of the exact index in memory.
"""
import hashlib
import threading
from urllib.parse import parse_qsl, quote, urlsplit

import numpy as np

from ..errors import UserError, first_line
from ..search import SPARE
from .errors import Busy
from .index import Hits, Rows, best_of, captures_of, checked, no_hits, scored, share_found

MANY = 8  # rows fetched for each type that is asked for: enough where a type has a few references
EF = 400  # candidates of the approximate index (pgvector's hnsw.ef_search)
QUERIES = 400  # two standard errors of a recall of .999 are .003; more would read the whole table too often


class PostgresIndex:
    """An `Index` in the database that `url` names. Exact, unless it has `?index=hnsw`.

    Raises UserError where the package, the database or pgvector is missing, Busy where the database does not answer.
    """

    def __init__(self, url: str, depth: int, name: str):
        try:
            import psycopg
            from pgvector.psycopg import register_vector
        except ImportError as error:
            raise UserError(f'index postgresql: {error.name} is not installed; pip install "docmetric[postgres]"') from None
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        kind, self._ef = options.pop("index", None), int(ef) if (ef := options.pop("ef", str(EF))).isdecimal() else 0
        if kind not in (None, "hnsw") or not 1 <= self._ef <= 1000:
            raise UserError("index postgresql: use ?index=hnsw, with or without &ef=1 to 1000, or neither")
        self._url = parts._replace(query="&".join(f"{key}={quote(value)}" for key, value in options.items())).geturl()
        self._psycopg, self._register = psycopg, register_vector
        self.depth, self.exact, self._name = depth, kind is None, name
        self._table = "docmetric_" + hashlib.sha256(name.encode()).hexdigest()[:24]
        self._idle, self._measuring = [], None
        try:
            self._create()
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported,
                psycopg.errors.UndefinedFile) as error:
            raise UserError(f"index postgresql: {first_line(error)}; it needs pgvector, and a user who may create tables"
                            ) from None
        self._measure_if_grown(*self._state("size", "measured"))

    # ---------------------------------------------------------------- the interface, see index.py
    @property
    def event(self) -> int:
        return self._state("event")[0]

    @property
    def recall(self) -> float | None:
        return None if self.exact else self._state("recall")[0]

    def __len__(self) -> int:
        return self._state("size")[0]

    def view(self) -> "PostgresIndex":
        return self

    def apply(self, event: int, added: Rows, removed: np.ndarray) -> None:
        added, removed = checked(self.depth, added, removed)
        if changed := self._run(lambda connection: self._apply(connection, event, added, removed)):
            self._measure_if_grown(*changed)

    def search(self, queries: np.ndarray, k: int) -> Hits:
        return self._search(queries, k, by_type=True, approximate=not self.exact)

    def search_rows(self, queries: np.ndarray, k: int) -> Hits:
        return self._search(queries, k, by_type=False, approximate=not self.exact)

    def close(self) -> None:
        if self._measuring:
            self._measuring.join()
        while self._idle:
            self._idle.pop().close()

    def measure(self) -> float:
        """The recall of the approximate search against the exact one: the share of the best two types of queries near some
        of the rows. Stored for every process; done in the background whenever the index has doubled."""
        rows = self._run(lambda connection: connection.execute(
            self._sql("SELECT id, type, vector FROM {rows} ORDER BY hashint8(id) LIMIT %s"), (QUERIES,), binary=True
        ).fetchall())
        queries = captures_of(self._arrays(rows).vectors, np.random.default_rng(0))
        recall = share_found(*(self._search(queries, 2, True, approximate).cosines for approximate in (True, False)))
        self._run(lambda connection: connection.execute(
            "UPDATE docmetric_index SET recall = %s, measured = size WHERE name = %s", (recall, self._name)))
        return recall

    def _measure_if_grown(self, size, measured):
        if not self.exact and size > 2 * measured and not (self._measuring and self._measuring.is_alive()):
            self._measuring = threading.Thread(target=self.measure, name="index recall", daemon=True)
            self._measuring.start()

    # ---------------------------------------------------------------- PostgreSQL
    def _apply(self, connection, event, added, removed):
        """(rows there are, rows there were when the recall was measured); None where another process was faster."""
        gone = np.unique(np.concatenate((removed, added.ids))).tolist()
        with connection.transaction():
            # The lock on this row lets one process at a time change the index.
            seen = connection.execute("SELECT event FROM docmetric_index WHERE name = %s FOR UPDATE", (self._name,))
            if event < seen.fetchone()[0]:
                return None
            lost = connection.execute(self._sql("DELETE FROM {rows} WHERE id = ANY(%s)"), (gone,)).rowcount if gone else 0
            if len(added.ids):
                with (connection.cursor() as cursor,
                      cursor.copy(self._sql("COPY {rows} (id, type, vector) FROM STDIN (FORMAT BINARY)")) as copy):
                    copy.set_types(["int8", "int8", "vector"])
                    for row in zip(added.ids.tolist(), added.types.tolist(), added.vectors):
                        copy.write_row(row)
            return connection.execute("UPDATE docmetric_index SET event = %s, size = size + %s WHERE name = %s "
                                      "RETURNING size, measured", (event, len(added.ids) - lost, self._name)).fetchone()

    def _search(self, queries, k, by_type, approximate):
        if queries.ndim != 2 or queries.shape[1] != self.depth or k < 1:
            raise ValueError(f"queries {queries.shape} and k {k}: expected [N, {self.depth}] and at least 1")
        hits = best_of([no_hits(len(queries))], k, by_type)
        candidates = self._run(lambda connection: self._candidates(connection, np.float32(queries), k + SPARE, by_type,
                                                                   approximate))
        for row, (query, found) in enumerate(zip(queries, candidates)):
            if found:
                for values, best in zip(hits, scored(query, self._arrays(found), k, by_type)):
                    values[row] = best[0]
        return hits

    def _arrays(self, rows):
        """[(id, type, vector)] -> Rows"""
        ids, types, vectors = zip(*rows) if rows else ((), (), ())
        return Rows(np.array(ids, np.int64), np.array(types, np.int64),
                    np.array([vector.to_numpy() for vector in vectors], np.float32).reshape(-1, self.depth))

    def _candidates(self, connection, queries, wanted, by_type, approximate):
        """For each query a list of (id, type, vector): the best rows, or rows of the best types, and some more."""
        # An approximate index, where there is one, cannot be used for a sum.
        nearest = self._sql("SELECT id, type, vector FROM {rows} ORDER BY vector <#> %s LIMIT %s" if approximate else
                            "SELECT id, type, vector FROM {rows} ORDER BY (vector <#> %s) + 0, type, id LIMIT %s")
        best_types = self._sql("""
            WITH best AS (SELECT type FROM {rows} GROUP BY type ORDER BY min(vector <#> %s), type LIMIT %s)
            SELECT DISTINCT ON (type) id, type, vector FROM {rows} JOIN best USING (type)
            ORDER BY type, vector <#> %s, id""")
        limit, found = wanted * MANY if by_type else wanted, []
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")  # one state for all queries
            if approximate:
                connection.execute("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true), "
                                   "set_config('hnsw.ef_search', %s, true)", (str(self._ef),))
            for query in queries:
                rows = connection.execute(nearest, (query, limit), binary=True).fetchall()
                if by_type and len(rows) == limit and len({kind for _, kind, _ in rows}) < wanted:
                    rows = connection.execute(best_types, (query, wanted, query), binary=True).fetchall()
                found.append(rows)
        return found

    def _state(self, *columns):
        return self._run(lambda connection: connection.execute(
            f"SELECT {', '.join(columns)} FROM docmetric_index WHERE name = %s", (self._name,)).fetchone())

    def _sql(self, text):
        return self._psycopg.sql.SQL(text).format(rows=self._psycopg.sql.Identifier(self._table),
                                                  graph=self._psycopg.sql.Identifier(self._table + "_hnsw"))

    def _create(self):
        with self._connect() as connection:
            # Of processes that begin at once, one makes the tables.
            connection.execute("BEGIN; SELECT pg_advisory_xact_lock(hashtext('docmetric'))")
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("""
                CREATE TABLE IF NOT EXISTS docmetric_index (
                    name text PRIMARY KEY, depth integer NOT NULL, rows_in text NOT NULL, event bigint NOT NULL,
                    size bigint NOT NULL, recall float8, measured bigint NOT NULL)""")
            connection.execute("INSERT INTO docmetric_index VALUES (%s, %s, %s, 0, 0, NULL, 0) ON CONFLICT DO NOTHING",
                               (self._name, self.depth, self._table))
            depth, = connection.execute("SELECT depth FROM docmetric_index WHERE name = %s", (self._name,)).fetchone()
            if depth != self.depth:
                raise UserError(f"index postgresql: {self._name} holds vectors of {depth} values, the model makes "
                                f"{self.depth}; it belongs to another model")
            connection.execute(self._sql("CREATE TABLE IF NOT EXISTS {rows} (id bigint PRIMARY KEY, type bigint NOT NULL, "
                                         f"vector vector({self.depth}) NOT NULL)"))
            if not self.exact:
                connection.execute(self._sql("CREATE INDEX IF NOT EXISTS {graph} ON {rows} "
                                             "USING hnsw (vector vector_ip_ops)"))
            connection.execute("COMMIT")

    def _connect(self):
        try:
            return self._psycopg.connect(self._url, autocommit=True, connect_timeout=10, application_name="docmetric")
        except self._psycopg.Error as error:
            raise self._busy(error) from None

    def _run(self, work):
        """`work(connection)`, on a connection that no other thread uses. One that has failed is not used again; where it was
        idle before, as when the server was started anew, the work is done again on another."""
        while True:
            try:
                connection, fresh = self._idle.pop(), False
            except IndexError:
                connection, fresh = self._connect(), True
                self._register(connection)
            try:
                result = work(connection)
            except self._psycopg.OperationalError as error:
                connection.close()
                if fresh:
                    raise self._busy(error) from None
            except self._psycopg.errors.UndefinedTable as error:
                connection.close()
                raise self._busy(error, "; someone has dropped it: start again, and the tables are filled anew") from None
            except BaseException:
                connection.close()
                raise
            else:
                self._idle.append(connection)
                return result

    def _busy(self, error, way_out=""):
        message, password = first_line(error), urlsplit(self._url).password
        return Busy(f"index postgresql: {message.replace(password, '***') if password else message}{way_out}")
