use std::fs;

use resvg::tiny_skia::Pixmap;

use super::figures::{Epochs, LayerNorms, LayerTrace, Rates, curves, drift, gradients, rates};
use super::*;

/// The figure as an SVG document.
fn draw(figure: &Figure) -> Result<String, ChartError> {
    Ok(render::svg(&page(figure)?))
}

const RUNS: [&str; 2] = ["with BatchNorm", "without"];

/// A reproducible jitter in -1..1.
fn jitter(i: u64) -> f64 {
    let mut bits = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits ^= bits >> 29;
    bits = bits.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Learning curves as they come: falling loss, rising accuracy, the run without BatchNorm behind.
fn learned(last: u64) -> Figure {
    let curve = |from: f64, to: f64, pace: f64, noise: f64| -> Vec<f64> {
        let at = |i: u64| to + (from - to) * (-(i as f64) / pace).exp() + noise * jitter(i ^ (pace * 7.0).to_bits());
        (0..last).map(at).collect()
    };
    let with = [
        curve(0.6, 0.08, 2.0, 0.004),
        curve(0.35, 0.14, 1.5, 0.01),
        curve(0.83, 0.975, 2.0, 0.002),
        curve(0.9, 0.962, 1.5, 0.004),
    ];
    let without = [
        curve(1.5, 0.21, 3.0, 0.01),
        curve(0.95, 0.26, 2.5, 0.02),
        curve(0.52, 0.93, 3.0, 0.003),
        curve(0.7, 0.918, 2.5, 0.006),
    ];
    fn epochs<'a>(run: &'a str, [a, b, c, d]: &'a [Vec<f64>; 4]) -> Epochs<'a> {
        Epochs { run, train_loss: a, validation_loss: b, train_accuracy: c, validation_accuracy: d }
    }
    let runs = [epochs(RUNS[0], &with), epochs(RUNS[1], &without)];
    curves(
        "Learning curves: mlp32 on digits",
        "784-32-32-10, batch 32, Adam 0.01; both networks see the same batches",
        &runs,
    )
}

fn drifted(steps: u64, layers: &[&str]) -> Figure {
    let mut traces = Vec::new();
    for (l, _) in layers.iter().enumerate() {
        for (r, _) in RUNS.iter().enumerate() {
            let depth = (l + 1) as f64;
            let moment = |step: u64| {
                let t = step as f64 / steps as f64;
                let noise = jitter(step * 7 + (l * 3 + r) as u64);
                match r {
                    0 => (step, -0.1 * t * depth + 0.04 * noise, 1.0 + 0.1 * t + 0.04 * jitter(step)),
                    _ => (
                        step,
                        -2.2 * depth * t.sqrt() + 0.3 * noise + 0.4 * (9.0 * t).sin(),
                        0.6 + 3.0 * depth * t.sqrt() + 0.2 * noise,
                    ),
                }
            };
            traces.push((l, r, (0..steps).map(moment).collect::<Vec<_>>()));
        }
    }
    let traces: Vec<LayerTrace<'_>> =
        traces.iter().map(|(l, r, m)| LayerTrace { run: RUNS[*r], layer: layers[*l], moments: m }).collect();
    drift(
        "What each ReLU receives during training",
        "Line: mean over the batch. Band: one standard deviation to either side.",
        &traces,
    )
}

fn flowed(layers: &[&str]) -> Figure {
    let norms = |late: bool| -> Vec<LayerNorms<'_>> {
        let of = |r: usize, l: usize| {
            let up = (layers.len() - l) as f64;
            let median =
                if r == 0 { 0.3 * 0.9f64.powf(up) } else { 0.4 * 0.35f64.powf(up) } * if late { 0.3 } else { 1.0 };
            LayerNorms { run: RUNS[r], layer: layers[l], tenth: median * 0.5, median, ninetieth: median * 2.2 }
        };
        (0..2).flat_map(|r| (0..layers.len()).map(move |l| of(r, l))).collect()
    };
    let (early, late) = (norms(false), norms(true));
    gradients(
        "Gradient norm by depth",
        "Line: median over the steps of an epoch. Band: 10th to 90th percentile.",
        &[("First epoch", &early), ("Last epoch", &late)],
    )
}

/// Rates of as many shapes.
fn rated(shapes: usize) -> Figure {
    let name = |i: usize| format!("{0}x{0}x{0}", 512 + i);
    let values = |height: f64| (0..shapes).map(|i| height + jitter(i as u64)).collect::<Vec<f64>>();
    let group = Rates {
        label: "m x k x n",
        title: "A B, 1 thread".to_owned(),
        shapes: (0..shapes).map(name).collect(),
        rates: vec![("avx2".to_owned(), values(80.0)), ("matrixmultiply".to_owned(), values(70.0))],
        peak: ("avx2 peak".to_owned(), values(100.0)),
    };
    rates("Matrix products, f32", "a processor", 1, vec![group])
}

fn pixels(figure: &Figure) -> Pixmap {
    Pixmap::decode_png(&render::png(&page(figure).unwrap()).unwrap()).unwrap()
}

/// Pixels that are not white in a strip of the picture.
fn inked(picture: &Pixmap, from: u32, to: u32) -> usize {
    let row = picture.width() as usize;
    picture.pixels()[from as usize * row..to as usize * row].iter().filter(|p| p.red() < 200).count()
}

#[test]
fn text_reaches_the_picture_without_any_installed_font() {
    let titled = Figure { columns: 1, title: "Even keel".into(), panels: vec![Panel::default()], ..Figure::default() };
    let untitled = Figure { title: String::new(), ..titled.clone() };
    let strip = |figure| inked(&pixels(figure), 28, 58);
    assert!(strip(&titled) > 200, "{} dark pixels where the title should be", strip(&titled));
    assert_eq!(strip(&untitled), 0);
}

#[test]
fn the_document_holds_outlines_and_no_text() {
    for figure in [learned(10), drifted(300, &["hidden 1", "hidden 2"]), flowed(&["conv 1", "dense 1"])] {
        let svg = draw(&figure).unwrap();
        assert!(!svg.contains("<text") && !svg.contains("font-family") && !svg.contains("NaN"));
        assert!(svg.matches("<path").count() > 50);
    }
}

#[test]
fn names_that_cannot_stand_side_by_side_are_turned_and_get_room() {
    let height = |shapes: usize| page(&rated(shapes)).unwrap().size().height();
    assert!(height(20) > height(3) + 50.0);
    // Turned names that would touch are left out, and cost no more room.
    assert_eq!(height(200), height(20));
}

#[test]
fn points_have_no_line_and_a_line_no_points() {
    let mut figure = rated(20);
    let mut inked_with = |form| {
        figure.panels[0].series.iter_mut().for_each(|series| series.form = form);
        let picture = pixels(&figure);
        inked(&picture, 0, picture.height())
    };
    let (line, points, both) = (inked_with(Form::Line), inked_with(Form::Points), inked_with(Form::Marked));
    assert!(line < both && points < both, "{line}, {points}, {both}");
}

#[test]
fn the_same_figure_gives_the_same_bytes() {
    let (a, b) = (page(&learned(10)).unwrap(), page(&learned(10)).unwrap());
    assert_eq!(render::svg(&a), render::svg(&b));
    assert_eq!(render::png(&a).unwrap(), render::png(&b).unwrap());
}

#[test]
fn a_written_document_renders_as_the_picture_does() {
    let folder = tempfile::tempdir().unwrap();
    let written = write(&learned(5), folder.path(), "curves").unwrap();
    assert_eq!(written, [folder.path().join("curves.svg"), folder.path().join("curves.png")]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // Without fonts: what a viewer on a bare machine makes of the document.
    let bare = resvg::usvg::Tree::from_str(&fs::read_to_string(&written[0]).unwrap(), &Default::default()).unwrap();
    let bare = Pixmap::decode_png(&render::png(&bare).unwrap()).unwrap();
    let own = Pixmap::decode_png(&fs::read(&written[1]).unwrap()).unwrap();
    assert_eq!((own.width(), own.height()), (bare.width(), bare.height()));
    let differing = own.pixels().iter().zip(bare.pixels()).filter(|(a, b)| a.red().abs_diff(b.red()) > 40).count();
    assert!(differing < 50, "{differing} pixels differ");
}

#[test]
fn awkward_data_is_drawn() {
    let constant = |v: f64| vec![v; 3];
    let run = |v: &'static [f64]| Epochs {
        run: "one",
        train_loss: v,
        validation_loss: v,
        train_accuracy: v,
        validation_accuracy: v,
    };
    for values in
        [&[][..], &[0.5], &[f64::NAN; 4], &[f64::INFINITY, 1.0], &[1e-30, 1e30], &[0.0, 0.0], &[f64::MAX, -f64::MAX]]
    {
        draw(&curves("x", "", &[run(values)])).unwrap();
    }
    draw(&flowed(&["only"])).unwrap();
    let uneven = Series {
        points: vec![(1.0, 1.0), (2.0, 2.0)],
        band: Some(constant(1.0).into_iter().map(|v| (v, v)).take(1).collect()),
        ..Series::default()
    };
    let panel = Panel { title: "a < b & \"c\" \u{7}".into(), series: vec![uneven], ..Panel::default() };
    draw(&Figure { columns: 3, panels: vec![panel], ..Figure::default() }).unwrap();
}

#[test]
fn a_figure_without_panels_is_an_error() {
    assert!(draw(&Figure::default()).is_err());
    assert!(draw(&drift("", "", &[])).is_err());
    let many = Figure { columns: 1, panels: vec![Panel::default(); 1000], ..Figure::default() };
    assert!(draw(&many).unwrap_err().to_string().contains("1000 panels"));
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = write(&learned(1), &missing, "curves").unwrap_err().to_string();
    assert!(error.contains("missing") && error.contains("curves.svg"), "{error}");
}

#[test]
fn documents_stay_small() {
    let svg = draw(&learned(10)).unwrap();
    assert!(svg.len() < 400_000, "{} bytes", svg.len());
    let long = draw(&drifted(60_000, &["hidden 1", "hidden 2"])).unwrap();
    assert!(long.len() < 400_000, "{} bytes", long.len());
}

/// For the eye: writes every kind of figure into the folder that the variable names.
#[test]
fn gallery() {
    let Some(folder) = std::env::var_os("EVENKEEL_GALLERY").map(PathBuf::from) else { return };
    let sizes = [64.0f64, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];
    let rate = |i: usize| Series {
        name: ["evenkeel", "matrixmultiply", "one library", "another library", "a third", "a fourth", "roof"][i].into(),
        points: sizes.map(|n| (n, 110.0 * (1.0 - 1.0 / (1.0 + n / 90.0)) - 9.0 * i as f64 + jitter(i as u64))).to_vec(),
        ..Series::default()
    };
    let bench = Panel {
        title: "GEMM, one thread, f32".into(),
        x: Axis { label: "n of an n x n x n product".into(), scale: Scale::Log },
        y: Axis { label: "GFLOP/s".into(), scale: Scale::Linear },
        series: (0..7).map(rate).collect(),
    };
    let bench = Figure { title: "Speed by size".into(), columns: 1, panels: vec![bench], ..Figure::default() };
    let (bad, good) = ([2.3, 2.4, f64::NAN, f64::INFINITY, 9.0, 70.0], [0.5, 0.2, 0.1, 0.07, 0.04, 0.02]);
    let (low, high) = ([0.1, 0.11, f64::NAN, 0.1, 0.098, 0.1], [0.9, 0.95, 0.96, 0.97, 0.98, 0.99]);
    let wild = [(RUNS[0], &good, &high), (RUNS[1], &bad, &low)].map(|(run, loss, accuracy)| Epochs {
        run,
        train_loss: loss,
        validation_loss: loss,
        train_accuracy: accuracy,
        validation_accuracy: accuracy,
    });
    let shown = [
        ("bench", bench),
        ("curves-wild", curves("A run that diverges", "", &wild)),
        ("curves", learned(10)),
        ("curves-1", learned(1)),
        ("curves-50", learned(50)),
        ("drift", drifted(18_750, &["hidden 1", "hidden 2"])),
        ("drift-4", drifted(60_000, &["conv 1", "conv 2", "dense 1", "dense 2"])),
        ("gradients", flowed(&["linear 1", "linear 2", "linear 3"])),
        ("rates", rated(20)),
        ("rates-few", rated(3)),
        ("rates-many", rated(70)),
        (
            "gradients-deep",
            flowed(&["conv 1", "conv 2", "dense 1", "dense 2", "dense 3", "dense 4", "dense 5", "output"]),
        ),
    ];
    for (stem, figure) in shown {
        write(&figure, &folder, stem).unwrap();
    }
}
