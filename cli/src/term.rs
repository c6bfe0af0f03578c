//! What the command shows while it works, and how tables look.
//!
//! Results go to standard output, progress to standard error. Nothing that moves is drawn unless standard
//! error is a terminal, and nothing is coloured: output is the same text in a pipe, so `NO_COLOR` has nothing to
//! switch off beyond the bold header of a running table.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Where output goes, found out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Term {
    /// Escape sequences are welcome on standard output.
    pub(crate) styled: bool,
    /// Progress are welcome on standard error.
    pub(crate) chatty: bool,
}

impl Term {
    /// Looks at this process's streams, at `NO_COLOR`, and at what `TERM` can do; `quiet` is the flag of that name.
    pub(crate) fn detect(quiet: bool) -> Term {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Term::of(io::stdout().is_terminal(), io::stderr().is_terminal(), plain, quiet)
    }

    fn of(out_is_terminal: bool, err_is_terminal: bool, plain: bool, quiet: bool) -> Term {
        Term { styled: out_is_terminal && !plain, chatty: err_is_terminal && !quiet }
    }

    /// A bar over `steps` steps, or one that never shows.
    pub(crate) fn progress(self, steps: u64) -> Progress {
        let target = if self.chatty { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let parts = steps.saturating_mul(PARTS);
        let bar =
            ProgressBar::with_draw_target(Some(parts), target).with_style(style(console::Term::stderr().size().1));
        if self.chatty {
            // The clock must go on while a step takes long.
            bar.enable_steady_tick(TICK);
        }
        Progress { bar, is_shown: self.chatty }
    }
}

/// A progress bar whose clock stands still.
pub(crate) struct Still<'a>(&'a Progress);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.tick();
    }
}

/// How often the clock ticks.
const TICK: Duration = Duration::from_millis(500);

/// Into how many parts a step is divided, for steps that take seconds.
const PARTS: u64 = 1000;

/// Columns that all but the message need at most: below them percents must do for a bar.
const WITH_BAR: u16 = 56;

/// The message comes last and is cut where the line ends, because a line that is broken cannot be taken back cleanly.
fn style(columns: u16) -> ProgressStyle {
    // Writing to the bar's own buffer cannot fail. Before the first step there is nothing to reckon with.
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        if state.pos() > 0 {
            // Steps of a second and longer need the digit.
            let rate = state.per_sec() / PARTS as f64;
            let digits = usize::from(rate < 10.0);
            let _ = write!(out, "{rate:.digits$} steps/s");
        }
    };
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        if state.pos() > 0 {
            let _ = write!(out, "{:#} left", HumanDuration(state.eta()));
        }
    };
    let template = if columns < WITH_BAR {
        "{percent:>3} %  {left}  {wide_msg}"
    } else {
        "{percent:>3} % [{bar:20}] {left}  {rate}  {wide_msg}"
    };
    let style = ProgressStyle::with_template(template).expect("the template is fixed");
    style.with_key("rate", rate).with_key("left", left).progress_chars("=> ")
}

/// Standard output. Whoever closes the pipe has read enough: what is written then is lost, and the work goes on.
#[derive(Debug)]
pub(crate) struct Out;

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match io::stdout().write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match io::stdout().flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// A progress bar; it clears itself when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    is_shown: bool,
}

impl Progress {
    fn tick(&self) {
        if self.is_shown {
            self.bar.enable_steady_tick(TICK);
        }
    }

    /// Counts `steps` more; cheap enough for every training step.
    pub(crate) fn advance(&self, steps: u64) {
        let whole = self.bar.position() / PARTS;
        self.bar.set_position((whole + steps).saturating_mul(PARTS));
    }

    /// That a `share` of the step at hand is done, which is less than all of it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to PARTS")]
    pub(crate) fn within(&self, share: f64) {
        let whole = self.bar.position() / PARTS * PARTS;
        self.bar.set_position(whole + (share.clamp(0.0, 1.0) * (PARTS - 1) as f64) as u64);
    }

    /// Stops the clock that ticks beside the work, until the result is dropped.
    pub(crate) fn still(&self) -> Still<'_> {
        self.bar.disable_steady_tick();
        Still(self)
    }

    /// What is being worked on: "epoch 3 of 10".
    pub(crate) fn name(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Takes the bar away while `print` writes to the same terminal.
    pub(crate) fn aside<R>(&self, print: impl FnOnce() -> R) -> R {
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// On which side a column's cells line up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A column of a table: its heading, and the room that its cells will need while a table is running.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column<'a> {
    heading: &'a str,
    width: usize,
    side: Side,
}

impl<'a> Column<'a> {
    /// Words: lined up on the left.
    pub(crate) fn words(heading: &'a str, width: usize) -> Column<'a> {
        Column { heading, width: width.max(heading.chars().count()), side: Side::Left }
    }

    /// Numbers: lined up on the right.
    pub(crate) fn numbers(heading: &'a str, width: usize) -> Column<'a> {
        Column { side: Side::Right, ..Column::words(heading, width) }
    }

    fn set(&self, line: &mut String, cell: &str) {
        let width = self.width;
        // Writing to a string cannot fail.
        let _ = match self.side {
            Side::Left => write!(line, "{cell:<width$}"),
            Side::Right => write!(line, "{cell:>width$}"),
        };
    }
}

/// A table that is written row by row while its numbers come in.
///
/// A cell that is wider than its column pushes the rest of its row to the right; it is never cut.
#[derive(Debug)]
pub(crate) struct Rows<'a, W> {
    out: W,
    columns: Vec<Column<'a>>,
}

impl<'a, W: Write> Rows<'a, W> {
    /// Writes the header.
    ///
    /// # Errors
    ///
    /// Whatever writing to `out` reports.
    pub(crate) fn begin(term: Term, out: W, columns: &[Column<'a>]) -> io::Result<Rows<'a, W>> {
        let mut rows = Rows { out, columns: columns.to_vec() };
        let header = rows.line(&columns.iter().map(|column| column.heading).collect::<Vec<_>>());
        match term.styled {
            true => writeln!(rows.out, "\u{1b}[1m{header}\u{1b}[0m")?,
            false => writeln!(rows.out, "{header}")?,
        }
        rows.out.flush()?;
        Ok(rows)
    }

    /// Writes one row at once; cells that are missing stay blank.
    ///
    /// # Errors
    ///
    /// Whatever writing reports: a closed pipe, for one.
    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: &[S]) -> io::Result<()> {
        let line = self.line(cells);
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    fn line<S: AsRef<str>>(&self, cells: &[S]) -> String {
        let mut line = String::new();
        for (i, column) in self.columns.iter().enumerate() {
            if i > 0 {
                line.push_str("  ");
            }
            column.set(&mut line, cells.get(i).map_or("", AsRef::as_ref));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A finished table as plain text, ready to paste into a document; its columns are as wide as their widest cell.
pub(crate) fn table(columns: &[Column<'_>], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(columns.iter().map(|column| column.heading));
    for row in rows {
        table.add_row(row);
    }
    for (column, made) in columns.iter().zip(table.column_iter_mut()) {
        made.set_cell_alignment(match column.side {
            Side::Left => CellAlignment::Left,
            Side::Right => CellAlignment::Right,
        });
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPED: Term = Term { styled: false, chatty: false };

    #[test]
    fn streams_decide_what_is_welcome() {
        assert_eq!(Term::of(true, true, false, false), Term { styled: true, chatty: true });
        assert_eq!(Term::of(true, true, true, true), PIPED);
        assert_eq!(Term::of(false, true, false, false), Term { styled: false, chatty: true });
        assert_eq!(Term::of(true, false, false, false), Term { styled: true, chatty: false });
    }

    #[test]
    fn quiet_is_quiet_on_any_terminal() {
        let term = Term::detect(true);
        assert!(!term.chatty);
    }

    #[test]
    fn a_running_table_lines_up() {
        let mut out = Vec::new();
        let columns = [Column::words("network", 14), Column::numbers("epoch", 3), Column::numbers("loss", 8)];
        let mut rows = Rows::begin(PIPED, &mut out, &columns).unwrap();
        rows.row(&["with BatchNorm", "1", "0.5321"]).unwrap();
        rows.row(&["without", "10"]).unwrap();
        let expected = "network         epoch      loss\nwith BatchNorm      1    0.5321\nwithout            10\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn only_a_styled_header_has_escapes() {
        for (styled, bold) in [(true, "\u{1b}[1mloss\u{1b}[0m\n"), (false, "loss\n")] {
            let mut out = Vec::new();
            Rows::begin(Term { styled, chatty: false }, &mut out, &[Column::numbers("loss", 0)]).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), bold);
        }
    }

    #[test]
    fn a_finished_table_is_plain() {
        let columns = [Column::words("network", 0), Column::numbers("accuracy", 0)];
        let rows =
            [vec!["with BatchNorm".to_owned(), "0.975".to_owned()], vec!["without".to_owned(), "0.9".to_owned()]];
        let expected = "\
| network        | accuracy |
|----------------|----------|
| with BatchNorm |    0.975 |
| without        |      0.9 |";
        assert_eq!(table(&columns, &rows), expected);
    }

    #[test]
    fn a_hidden_bar_counts_and_steps_aside() {
        let progress = PIPED.progress(10);
        progress.name("epoch 1");
        progress.advance(3);
        progress.within(0.5);
        assert_eq!(progress.bar.position(), 3 * PARTS + 499);
        progress.within(1.0);
        progress.advance(1);
        assert_eq!(progress.bar.position(), 4 * PARTS);
        assert!(progress.bar.is_hidden());
        assert_eq!(progress.aside(|| 7), 7);
    }
}
